"""The rule table: each row by itself, its bands, its thresholds, its page."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.contracts import (
    Blueprint,
    CommandType,
    HandlingClass,
    HardwareContext,
    HazardBand,
    Priority,
    SafetySheet,
    SeedOperation,
    SeedStage,
    SeedState,
    SystemStatePacket,
    TelemetryLevel,
)
from tamiyo_jax.risk import (
    RULES,
    Effect,
    Rule,
    Signals,
    gate,
    read_signals,
    rules_markdown,
    rules_that_hold,
)

CONFIG = RiskConfig()
RELATIVE = RiskConfig(detection="relative")


def metrics(**values: float) -> Signals:
    return Signals(metrics={name.replace("__", "."): value for name, value in values.items()})


def sheet(hazard: HazardBand, handling: HandlingClass = HandlingClass.STANDARD) -> Signals:
    return Signals(blueprint=Blueprint("b", safety=SafetySheet(0.1, hazard, handling)))


# What makes each row hold, in the table's order; some bring an INFO row along.
FIRES = [
    ("nonfinite_loss", Signals(nonfinite_loss=True)),
    ("policy_risk_critical", Signals(policy_risk_score=0.98)),
    ("policy_risk_elevated", Signals(policy_risk_score=0.85)),
    ("policy_risk_signal", Signals(policy_risk_score=0.0)),
    ("conservative_mode", Signals(conservative=True)),
    ("bp_quarantine", Signals(blueprint=Blueprint("b", risk=0.8))),
    ("blueprint_risk", Signals(blueprint=Blueprint("b", risk=0.5))),
    ("bsds_handling_quarantine", sheet(HazardBand.LOW, HandlingClass.QUARANTINE)),
    ("bsds_hazard_critical", sheet(HazardBand.CRITICAL)),
    ("bsds_hazard_high", sheet(HazardBand.HIGH)),
    ("bsds_present", sheet(HazardBand.LOW)),
    ("loss_spike", Signals(loss_delta=0.151)),
    ("loss_warning", Signals(loss_delta=0.0751)),
    ("hook_budget", metrics(hook_latency_ms=50.1)),
    ("step_latency_high", metrics(step_latency_ms=120.1)),
    ("kasmina_apply_slow", metrics(kasmina__apply_ms=30.1)),
    ("kasmina_finalize_slow", metrics(kasmina__finalize_ms=30.1)),
    ("isolation_violation", metrics(kasmina__isolation__violations=1.0)),
    ("loss_volatility_high", metrics(loss_volatility=0.113)),
    ("grad_variance_high", metrics(grad_var=1.01)),
    ("grad_conflict_high", metrics(grad_conflict_rate=0.51)),
    ("optimizer_hint", Signals(loss_delta=0.08, metrics={"optimizer_lr": 0.0})),
    ("device_pressure_high", metrics(gpu_util_percent=95.0, gpu_mem_free_gb=0.2)),
    ("cpu_pressure_high", metrics(cpu_util_percent=95.0)),
    ("step_refused", metrics(step_refused=1.0)),
    ("update_outlier", metrics(high_updates=3.0)),
    ("refusals_exhausted", metrics(ruinous_in_row=32.0)),
    ("divergence", metrics(sustained_rise=0.7, sustained_z=6.1)),
    ("sustained_rise", metrics(sustained_rise=0.42, sustained_z=6.1)),
    ("gradient_rising", metrics(high_gradients=8.0)),
    ("plateau", metrics(steps_without_progress=2000.0)),
    ("step_slow", metrics(latency_ratio=5.1)),
    ("loader_stall", metrics(loader_ratio=5.1)),
    ("degraded_inputs", Signals(coverage=0.10)),
    ("degraded_inputs", Signals(coverage=0.29)),
]
BRINGS_ALONG = {"policy_risk_signal", "bsds_present", "loss_warning"}
QUIET = [
    Signals(),
    Signals(loss_delta=0.075, coverage=0.30, blueprint=Blueprint("b", risk=0.49)),
    Signals(loss_delta=-5.0, coverage=1.0, blueprint=Blueprint("b")),
    metrics(hook_latency_ms=50.0, step_latency_ms=120.0, kasmina__apply_ms=30.0),
    metrics(loss_volatility=0.1125, grad_var=1.0, grad_conflict_rate=0.5, optimizer_lr=0.0),
    metrics(gpu_util_percent=94.9, gpu_mem_free_gb=0.1, cpu_util_percent=94.9),
    metrics(gpu_util_percent=100.0, gpu_mem_free_gb=0.21),
    metrics(gpu_util_percent=100.0),
]


def list_held(signals: Signals, config: RiskConfig = CONFIG) -> list[Rule]:
    return [row.rule for row in rules_that_hold(signals, config)]


@pytest.mark.parametrize("index", range(len(FIRES)), ids=lambda i: f"{i}-{FIRES[i][0]}")
def test_a_row_of_one_kind_of_detection_takes_no_part_under_the_other(index: int):
    rule, signals = RULES[index], FIRES[index][1]
    under = {
        detection: rule in list_held(signals, RiskConfig(detection=detection))
        for detection in ("absolute", "relative")
    }
    assert under == {
        detection: rule.detection in ("any", detection) for detection in ("absolute", "relative")
    }


def test_every_row_of_the_table_has_a_case_that_makes_it_hold():
    assert [name for name, _ in FIRES] == [rule.reason for rule in RULES]


@pytest.mark.parametrize("index", range(len(FIRES)), ids=lambda i: f"{i}-{FIRES[i][0]}")
def test_a_row_fires_alone_and_does_what_it_says(index: int):
    rule, signals = RULES[index], FIRES[index][1]
    config = RELATIVE if rule.detection == "relative" else CONFIG
    assert rule in list_held(signals, config)
    assert {other.reason for other in list_held(signals, config)} <= {rule.reason} | BRINGS_ALONG

    verdict = gate(
        CommandType.SEED,
        SeedOperation.GERMINATE,
        signals,
        config,
        rules=[rule],
        reason="mine:plateau",
        explanation="no improvement for 3 epochs",
    )

    assert verdict.enters_conservative is rule.star
    assert [(event.name, event.level) for event in verdict.events] == [(rule.event, rule.level)]
    assert all(isinstance(text, str) for text in verdict.events[0].attributes.values())
    restricted = CommandType.SEED if rule.effect is Effect.NONE else CommandType.PAUSE
    assert verdict.command_type is restricted  # no optimiser and no checkpoint is known
    assert verdict.reason == ("mine:plateau" if rule.effect is Effect.NONE else rule.reason)
    critical = rule.level is TelemetryLevel.CRITICAL
    expected = Priority.HIGH if rule.raises_priority else Priority.NORMAL
    assert verdict.priority is (Priority.CRITICAL if critical else expected)


@pytest.mark.parametrize("signals", QUIET)
def test_values_at_a_limit_that_must_be_passed_hold_no_row(signals: Signals):
    assert list_held(signals) == []


def test_of_one_band_only_the_most_severe_row_takes_part():
    everything = Signals(
        policy_risk_score=0.99,
        loss_delta=1.0,
        coverage=0.0,
        blueprint=Blueprint(
            "b",
            quarantine_only=True,
            safety=SafetySheet(0.9, HazardBand.CRITICAL, HandlingClass.QUARANTINE),
        ),
        metrics={
            "gpu_util_percent": 99.0,
            "gpu_mem_free_gb": 0.0,
            "cpu_util_percent": 99.0,
        },
    )
    bands = Counter(rule.band for rule in list_held(everything))
    assert set(bands.values()) == {1}
    reasons = {rule.reason for rule in list_held(everything)}
    assert {"policy_risk_critical", "loss_spike", "bp_quarantine", "device_pressure_high"} < reasons
    assert not {"policy_risk_elevated", "loss_warning", "cpu_pressure_high"} & reasons


@pytest.mark.parametrize("device", ["cpu", "CPU"])
def test_a_run_that_trains_on_a_cpu_is_not_blamed_for_using_it(device: str):
    assert list_held(Signals(metrics={"cpu_util_percent": 100.0}, device_type=device)) == []


def test_the_safety_sheet_s_risk_goes_before_the_blueprint_s():
    calm = SafetySheet(0.1, HazardBand.LOW, HandlingClass.STANDARD)
    reasons = {
        rule.reason for rule in list_held(Signals(blueprint=Blueprint("b", risk=0.9, safety=calm)))
    }
    assert reasons == {"bsds_present"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("loss_volatility", "loss_volatility_high"),
        ("grad_var", "grad_variance_high"),
        ("grad_conflict_rate", "grad_conflict_high"),
    ],
)
def test_nan_in_the_numerics_of_training_counts_as_above_the_limit(name: str, reason: str):
    assert [rule.reason for rule in list_held(Signals(metrics={name: math.nan}))] == [reason]
    assert [rule.reason for rule in list_held(Signals(metrics={name: math.inf}))] == [reason]


def test_a_loss_delta_that_is_nan_counts_as_a_spike():
    assert [rule.reason for rule in list_held(Signals(loss_delta=math.nan))] == ["loss_spike"]


@pytest.mark.parametrize(
    "name",
    [
        "hook_latency_ms",
        "step_latency_ms",
        "kasmina.apply_ms",
        "kasmina.finalize_ms",
        "kasmina.isolation.violations",
        "cpu_util_percent",
    ],
)
def test_an_instrument_that_says_nan_has_no_reading_and_holds_no_row(name: str):
    assert list_held(Signals(metrics={name: math.nan})) == []


def test_events_carry_the_measured_value_and_its_limit():
    (row,) = rules_that_hold(metrics(hook_latency_ms=51.5), RiskConfig(hook_budget_ms=40.0))
    assert row.event.attributes == {"hook_latency_ms": "51.5", "hook_latency_ms_limit": "40"}


def test_thresholds_are_configuration():
    signals = metrics(grad_var=1.5)
    assert rules_that_hold(signals, RiskConfig(grad_variance=2.0)) == ()
    assert len(rules_that_hold(signals, RiskConfig(grad_variance=1.4))) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["validation", "training", "metric", "named metric", "seed"])
def test_any_loss_of_the_packet_that_is_not_finite_is_seen(where: str, bad: float):
    seed_metrics = {"loss": bad} if where == "seed" else {"alpha": math.nan}
    packet = SystemStatePacket(
        packet_id="p",
        training_run_id="r",
        blueprint_id="b",
        validation_loss=bad if where == "validation" else 0.5,
        training_loss=bad if where == "training" else None,
        training_metrics={
            "loss": bad if where == "metric" else 0.4,
            "train/aux_loss": bad if where == "named metric" else 0.4,
        },
        seeds=(SeedState("s", SeedStage.DORMANT, metrics=seed_metrics),),
    )
    assert signals_of(packet).nonfinite_loss


def test_a_packet_whose_other_metrics_are_not_finite_has_finite_losses():
    packet = SystemStatePacket(
        packet_id="p",
        training_run_id="r",
        blueprint_id="b",
        validation_loss=0.5,
        training_metrics={"gradient_norm": math.nan, "loss": 0.5},
        optimizer_id="adam",
        restorable_checkpoint="step-7",
        hardware=HardwareContext("cuda"),
    )
    signals = signals_of(packet)
    assert not signals.nonfinite_loss
    assert (signals.optimizer_id, signals.restorable_checkpoint) == ("adam", "step-7")
    assert signals.device_type == "cuda"


def signals_of(packet: SystemStatePacket) -> Signals:
    return read_signals(
        packet,
        loss_delta=0.0,
        conservative=False,
        blueprint=None,
        policy_risk_score=None,
        coverage=None,
    )


def test_the_documented_table_is_the_one_that_runs():
    page = Path(__file__).parents[2] / "docs" / "risk_rules.md"
    assert page.read_text(encoding="utf-8") == rules_markdown()


def test_the_page_has_one_row_for_each_rule():
    rows = [line for line in rules_markdown().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [rule.reason for rule in RULES]
