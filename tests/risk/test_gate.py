"""The gate: golden cases, and what holds for any signals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.conformance._risk import compare_risk
from tamiyo_jax.contracts import (
    Blueprint,
    CommandType,
    HandlingClass,
    HazardBand,
    Priority,
    SafetySheet,
    SeedOperation,
    TelemetryLevel,
)
from tamiyo_jax.risk import (
    RESTRICTION,
    RULES,
    Effect,
    Signals,
    Verdict,
    clip_lr_delta,
    gate,
    guard,
    rules_that_hold,
)

CONFIG = RiskConfig()
SEED = CommandType.SEED
PROPOSALS = [
    (None, None),
    *[(SEED, operation) for operation in SeedOperation if operation],
    (CommandType.OPTIMIZER, None),
    (CommandType.CIRCUIT_BREAKER, None),
    (CommandType.PAUSE, None),
]
METRICS = [
    "hook_latency_ms",
    "step_latency_ms",
    "kasmina.apply_ms",
    "kasmina.finalize_ms",
    "kasmina.isolation.violations",
    "loss_volatility",
    "grad_var",
    "grad_conflict_rate",
    "optimizer_lr",
    "gpu_util_percent",
    "gpu_mem_free_gb",
    "cpu_util_percent",
]

unit = st.floats(0, 1)
sheets = st.builds(SafetySheet, unit, st.sampled_from(HazardBand), st.sampled_from(HandlingClass))
blueprints = st.builds(
    Blueprint,
    st.just("b"),
    risk=st.none() | unit,
    quarantine_only=st.booleans(),
    safety=st.none() | sheets,
)
signals = st.builds(
    Signals,
    policy_risk_score=st.none() | unit,
    loss_delta=st.floats(-1, 1) | st.just(math.nan),
    metrics=st.dictionaries(
        st.sampled_from(METRICS),
        st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 0.3, 2.0, 99.0, 500.0]),
    ),
    coverage=st.none() | unit,
    blueprint=st.none() | blueprints,
    conservative=st.booleans(),
    nonfinite_loss=st.booleans(),
    restorable_checkpoint=st.sampled_from([None, "step-7"]),
    device_type=st.sampled_from([None, "cpu", "cuda"]),
    optimizer_id=st.sampled_from([None, "adam"]),
)
proposals = st.sampled_from(PROPOSALS)


POLICY = {"reason": "mine:plateau", "explanation": "no improvement for 3 epochs"}


def ask(proposal: tuple[CommandType | None, SeedOperation | None], observed: Signals) -> Verdict:
    return gate(*proposal, observed, CONFIG, **POLICY)


def test_all_golden_cases_are_answered_alike(golden: Path):
    cases, mismatches = compare_risk(golden / "risk.json")
    assert cases == 120
    assert mismatches == ()


def test_conformance_names_a_case_that_differs(golden: Path, tmp_path: Path):
    text = (golden / "risk.json").read_text(encoding="utf-8")
    wrong = tmp_path / "risk.json"
    wrong.write_text(text.replace('"reason":"hook_budget"', '"reason":"elsewhere"', 1))
    cases, mismatches = compare_risk(wrong)
    assert cases == 120
    assert len(mismatches) == 1
    assert "elsewhere" in mismatches[0]


@given(proposals, signals, st.permutations(RULES))
def test_the_order_of_the_table_decides_nothing_but_ties(proposal, observed, shuffled):
    expected = ask(proposal, observed)
    verdict = gate(*proposal, observed, CONFIG, rules=shuffled, **POLICY)

    assert verdict.command_type == expected.command_type
    assert verdict.events == expected.events
    assert verdict.priority == expected.priority
    assert verdict.enters_conservative == expected.enters_conservative
    assert verdict.downgraded == expected.downgraded
    assert levels(verdict) == levels(expected)


def levels(verdict: Verdict) -> set[TelemetryLevel]:
    """Levels of the rows that give the verdict's reason."""
    return {rule.level for rule in RULES if rule.reason == verdict.reason and rule.effect}


@given(proposals, signals)
def test_a_verdict_never_restricts_less_than_the_proposal(proposal, observed):
    verdict = ask(proposal, observed)
    assert RESTRICTION[verdict.command_type] >= RESTRICTION[proposal[0]]


@given(proposals, signals)
def test_a_changed_command_has_the_reason_of_a_row_that_holds(proposal, observed):
    verdict = ask(proposal, observed)
    held = rules_that_hold(observed, CONFIG)
    if verdict.command_type != proposal[0]:
        assert verdict.reason in {row.rule.reason for row in held}
    assert len(verdict.events) == len(held)
    ranks = [(-event.level, event.name) for event in verdict.events]
    assert ranks == sorted(ranks)


@given(proposals, signals)
def test_an_optimizer_command_is_made_only_where_an_optimizer_is_known(proposal, observed):
    verdict = ask(proposal, observed)
    assert verdict.downgraded == (
        proposal[0] is SEED and verdict.command_type is CommandType.OPTIMIZER
    )
    if verdict.downgraded:
        assert observed.optimizer_id is not None


@given(st.floats())
def test_a_downgrade_never_speeds_up_and_is_always_finite(lr_delta):
    restrained = clip_lr_delta(lr_delta)
    assert -1.0 <= restrained <= 0.0
    if -1.0 <= lr_delta <= 0.0:
        assert restrained == lr_delta


@given(signals)
def test_culling_a_seed_is_stopped_by_nothing_but_a_rollback(observed):
    verdict = ask((SEED, SeedOperation.CULL), observed)
    if observed.nonfinite_loss and observed.restorable_checkpoint is not None:
        assert (verdict.command_type, verdict.reason) == (CommandType.ROLLBACK, "nonfinite_loss")
    else:
        assert (verdict.command_type, verdict.reason) == (SEED, "mine:plateau")


@given(signals, proposals)
def test_every_proposal_but_a_cull_pauses_in_conservative_mode(observed, proposal):
    if not observed.conservative or proposal[1] is SeedOperation.CULL:
        return
    expected = {CommandType.PAUSE, CommandType.ROLLBACK}
    assert ask(proposal, observed).command_type in expected


def test_without_a_checkpoint_a_nonfinite_loss_pauses():
    verdict = ask((SEED, SeedOperation.GERMINATE), Signals(nonfinite_loss=True))
    assert verdict.command_type is CommandType.PAUSE
    assert verdict.star == "nonfinite_loss"


def test_a_star_row_enters_conservative_mode_even_where_it_had_no_effect():
    verdict = ask((SEED, SeedOperation.CULL), Signals(loss_delta=1.0))
    assert verdict.reason == "mine:plateau"
    assert verdict.star == "loss_spike"


def test_the_level_goes_before_the_restriction_in_the_reason():
    observed = Signals(nonfinite_loss=False, coverage=0.0, metrics={"hook_latency_ms": 99.0})
    assert ask((None, None), observed).reason == "degraded_inputs"


def test_the_restriction_goes_before_the_place_in_the_table():
    observed = Signals(
        loss_delta=0.1, optimizer_id="adam", metrics={"step_latency_ms": 500.0, "grad_var": 9.0}
    )
    assert ask((SEED, SeedOperation.GERMINATE), observed).reason == "step_latency_high"


def test_the_earlier_of_two_equal_rows_gives_the_reason():
    observed = Signals(metrics={"step_latency_ms": 500.0, "hook_latency_ms": 99.0})
    assert ask((None, None), observed).reason == "hook_budget"


@pytest.mark.parametrize("proposal", [CommandType.OPTIMIZER, CommandType.CIRCUIT_BREAKER, None])
def test_a_downgrade_row_is_reported_but_leaves_other_commands_unchanged(
    proposal: CommandType | None,
):
    verdict = ask((proposal, None), Signals(loss_delta=0.1, optimizer_id="adam"))
    assert (verdict.command_type, verdict.reason) == (proposal, "mine:plateau")
    assert [event.name for event in verdict.events] == ["loss_warning"]


def test_guard_mode_waits_where_nothing_is_wrong():
    verdict = guard(Signals(optimizer_id="adam"), CONFIG, may_brake=True)
    assert (verdict.command_type, verdict.reason, verdict.brakes) == (None, "guard:wait", False)
    assert verdict.priority is Priority.NORMAL


@pytest.mark.parametrize(
    ("optimizer_id", "may_brake", "brakes"),
    [("adam", True, True), ("adam", False, False), (None, True, False)],
)
def test_guard_mode_brakes_on_a_downgrade_row(optimizer_id, may_brake, brakes):
    observed = Signals(loss_delta=0.1, optimizer_id=optimizer_id)
    verdict = guard(observed, CONFIG, may_brake=may_brake)
    assert verdict.brakes is brakes
    assert verdict.command_type is (CommandType.OPTIMIZER if brakes else None)
    assert verdict.reason == ("loss_warning" if brakes else "guard:wait")
    assert not verdict.downgraded


def test_guard_mode_pauses_rather_than_brakes_where_both_are_asked_for():
    observed = Signals(loss_delta=0.1, optimizer_id="adam", metrics={"hook_latency_ms": 99.0})
    verdict = guard(observed, CONFIG, may_brake=True)
    assert (verdict.command_type, verdict.brakes) == (CommandType.PAUSE, False)


@given(signals)
def test_guard_mode_differs_from_the_gate_on_wait_only_by_braking(observed):
    verdict = guard(observed, CONFIG, may_brake=False)
    if verdict.reason == "guard:wait":
        verdict = replace(verdict, **POLICY)
    assert verdict == ask((None, None), observed)


def test_every_effect_is_used_by_some_row():
    assert {rule.effect for rule in RULES} == set(Effect)


@pytest.mark.parametrize(
    ("proposal", "observed", "explanation"),
    [
        ((None, None), Signals(), "no improvement for 3 epochs"),
        ((None, None), Signals(loss_delta=0.31), "validation loss rose by 0.31, limit 0.15"),
        (
            (None, None),
            Signals(nonfinite_loss=True),
            "a loss in the packet is NaN or infinite; no checkpoint to return to",
        ),
        (
            (None, None),
            Signals(nonfinite_loss=True, restorable_checkpoint="step-7"),
            "a loss in the packet is NaN or infinite",
        ),
        (
            (SEED, SeedOperation.GERMINATE),
            Signals(metrics={"gpu_util_percent": 97.0, "gpu_mem_free_gb": 0.1}),
            "GPU 97 % busy, limit 95 and 0.1 GB of GPU memory free, limit 0.2",
        ),
        (
            (SEED, SeedOperation.GERMINATE),
            Signals(blueprint=Blueprint("b", risk=0.6)),
            "blueprint risk 0.6, limit 0.5; no optimiser to slow down",
        ),
    ],
)
def test_a_verdict_explains_in_words_which_measurement_caused_it(proposal, observed, explanation):
    assert ask(proposal, observed).explanation == explanation


def test_the_guard_says_why_it_does_not_brake():
    observed = Signals(loss_delta=0.1, optimizer_id="adam")
    waits = guard(observed, CONFIG, may_brake=False)
    assert waits.explanation == "no brake is due: validation loss rose by 0.1, limit 0.075"
    calm = guard(Signals(), CONFIG, may_brake=True)
    assert (calm.reason, calm.explanation) == ("guard:wait", "no signal is beyond its limit")


@given(proposals, signals)
def test_every_verdict_has_a_reason_and_an_explanation(proposal, observed):
    verdict = ask(proposal, observed)
    assert verdict.explanation
    assert verdict.reason not in {"", "policy"}
