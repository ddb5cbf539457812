"""The controller as a pure function: nothing goes in but arguments, and the state is all of it."""

from __future__ import annotations

import copy
import functools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from making import make_blueprint, make_config, make_packet, make_seed, story

from tamiyo_jax._digests import write_digests
from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    CommandType,
    SeedStage,
    SystemStatePacket,
)
from tamiyo_jax.controller import (
    Mode,
    Outcome,
    TamiyoState,
    ask,
    conclude,
    fail,
    initial_state,
    observe,
    state_from_json,
    state_to_json,
    step,
)
from tamiyo_jax.errors import CheckpointMismatchError, InvalidPacketError, PersistenceError
from tamiyo_jax.policy import (
    Action,
    GraphPolicy,
    HeuristicPolicy,
    Policy,
    abstract_params,
    init_params,
)
from tamiyo_jax.risk import RiskState
from tamiyo_jax.storage import load_checkpoint, save_checkpoint

CONFIG = make_config()
LIBRARY = {name: make_blueprint(name) for name in ("host", "grow-a", "grow-b")}
LENGTH, CUT = 24, 11


class Deciding(NamedTuple):
    """A policy with its parameters."""

    policy: Policy[Any, Any]
    params: Any


def heuristic() -> Deciding:
    return Deciding(HeuristicPolicy(CONFIG.heuristic, CONFIG.policy), {})


@functools.cache
def make_untrained() -> Any:
    return init_params(CONFIG.policy, jax.random.key(0))


def graph() -> Deciding:
    params = make_untrained()
    kernel = params["policy_logits"]["kernel"]
    trained = jax.random.normal(jax.random.key(1), kernel.shape)  # untrained ones are all zero
    head = {**params["policy_logits"], "kernel": trained}
    return Deciding(GraphPolicy(CONFIG.graph), {**params, "policy_logits": head})


@pytest.fixture(params=[heuristic, graph], ids=["heuristic", "graph"])
def deciding(request: pytest.FixtureRequest) -> Deciding:
    return request.param()


def decide(
    deciding: Deciding, state: TamiyoState, packet: SystemStatePacket
) -> tuple[TamiyoState, Outcome]:
    return step(
        CONFIG,
        deciding.policy,
        deciding.params,
        state,
        packet,
        LIBRARY[packet.blueprint_id],
        tuple(LIBRARY[candidate] for candidate in packet.candidates),
        policy_version="a version",
        now_ns=1_700_000_000_000_000_000 + packet.global_step,
        command_id=f"command-{packet.packet_id}",
        report_id=f"report-{packet.packet_id}",
    )


def run(
    deciding: Deciding, state: TamiyoState, packets: list[SystemStatePacket]
) -> tuple[TamiyoState, list[Outcome]]:
    outcomes = []
    for packet in packets:
        state, outcome = decide(deciding, state, packet)
        outcomes.append(outcome)
    return state, outcomes


def start(deciding: Deciding) -> TamiyoState:
    return initial_state(deciding.policy.initial_state())


def summarise(outcome: Outcome) -> tuple:
    """All of an outcome that can be compared with ==, and the outputs bit by bit."""
    arrays = {} if outcome.outputs is None else outcome.outputs.named_arrays()
    outputs = [np.asarray(array) for array in arrays.values()]
    return (
        *(outcome.action, outcome.command, outcome.report, outcome.events, outcome.verdict),
        *(outcome.proposal, outcome.priority, outcome.health, outcome.loss_delta),
        tuple((output.dtype, output.shape, output.tobytes()) for output in outputs),
    )


def with_logits(deciding: Deciding, action: Action) -> Deciding:
    """The same policy, wanting one action above all."""

    class Wanting:
        def initial_state(self) -> Any:
            return deciding.policy.initial_state()

        def decide(self, params: Any, policy_state: Any, observation: Any) -> Any:
            state, outputs = deciding.policy.decide(params, policy_state, observation)
            logits = np.zeros_like(np.asarray(outputs.policy_logits))
            logits[action] = 1.0
            return state, outputs._replace(policy_logits=logits)

    return Deciding(Wanting(), deciding.params)


def test_the_same_arguments_give_the_same_outcome_and_the_state_is_left_alone(
    deciding: Deciding,
) -> None:
    state, _ = run(deciding, start(deciding), story(CUT))
    before, packet = state_to_json(state), story(CUT + 1)[CUT]
    kept = copy.deepcopy(packet)
    first, outcome = decide(deciding, state, packet)
    second, again = decide(deciding, state, packet)
    assert summarise(outcome) == summarise(again)
    assert state_to_json(first) == state_to_json(second)
    assert state_to_json(state) == before != state_to_json(first)
    assert packet == kept


def test_time_and_ids_are_those_that_were_given(deciding: Deciding) -> None:
    _, outcome = decide(with_logits(deciding, Action.PAUSE), start(deciding), make_packet(3))
    assert outcome.command is not None
    assert outcome.command.command_id == "command-packet-3"
    assert outcome.report.report_id == "report-packet-3"
    assert outcome.command.issued_at_ns == outcome.report.issued_at_ns
    assert outcome.report.issued_at_ns == 1_700_000_000_000_000_030


def test_a_failure_changes_the_failure_count_and_nothing_else(deciding: Deciding) -> None:
    state, _ = run(deciding, start(deciding), story(CUT))
    error = InvalidPacketError("current_epoch is -1", field="current_epoch", value=-1)
    after, failure = fail(
        CONFIG,
        state,
        make_packet(current_epoch=-1),
        error,
        stage=None,
        policy_version="a version",
        now_ns=1,
        report_id="a report",
    )
    assert state_to_json(replace(after, failures=0)) == state_to_json(state)
    assert after.failures == 1
    assert failure.report.notes == "InvalidPacketError: current_epoch is -1"


def test_a_run_restored_in_the_middle_is_bit_identical_to_the_unbroken_one(
    deciding: Deciding, tmp_path: Path
) -> None:
    packets = story(LENGTH)
    unbroken, whole = run(deciding, start(deciding), packets)
    state, first = run(deciding, start(deciding), packets[:CUT])
    save_checkpoint(tmp_path / "middle", state, deciding.params, CONFIG)
    state, params = load_checkpoint(
        tmp_path / "middle",
        CONFIG,
        policy_state=deciding.policy.initial_state(),
        params=deciding.params,
    )
    restored, rest = run(deciding._replace(params=params), state, packets[CUT:])
    assert [summarise(decision) for decision in (*first, *rest)] == [
        summarise(decision) for decision in whole
    ]
    assert restored.registries == unbroken.registries
    assert restored.risk == unbroken.risk
    # The text holds arrays as their bytes, the normaliser's among them.
    assert state_to_json(restored) == state_to_json(unbroken)


@pytest.fixture
def round_trip(tmp_path: Path) -> tuple[Path, Deciding]:
    deciding, params = heuristic(), make_untrained()
    state, _ = run(deciding, start(deciding), story(3))
    save_checkpoint(tmp_path / "checkpoint", state, params, CONFIG)
    return tmp_path / "checkpoint", deciding._replace(params=params)


def test_no_damaged_file_of_a_checkpoint_is_loaded(round_trip: tuple[Path, Deciding]) -> None:
    path, deciding = round_trip
    template = deciding.policy.initial_state()
    chance = random.Random(0)
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        whole = file.read_bytes()
        for position in chance.sample(range(len(whole)), min(len(whole), 10)):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << chance.randrange(8)
            for content in (bytes(damaged), whole[:position]):
                file.write_bytes(content)
                with pytest.raises(PersistenceError, match="damaged"):
                    load_checkpoint(path, CONFIG, policy_state=template, params=deciding.params)
        file.write_bytes(whole)
    load_checkpoint(path, CONFIG, policy_state=template, params=deciding.params)


@pytest.mark.parametrize(
    ("sections", "name"),
    [
        ({"graph": {"max_seeds": 4}}, "graph"),
        ({"graph": {"normalizer_rate": 0.2}}, "graph"),
        ({"policy": {"sage_width": 32, "gat_width": 8, "heads": 2}}, "policy"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_name(
    round_trip: tuple[Path, Deciding], sections: dict, name: str
) -> None:
    path, deciding = round_trip
    with pytest.raises(CheckpointMismatchError, match=f"checkpoint: {name} is") as raised:
        load_checkpoint(
            path,
            make_config(**sections),
            policy_state=deciding.policy.initial_state(),
            params=deciding.params,
        )
    assert raised.value.name == name


def test_parameters_of_other_widths_are_refused(round_trip: tuple[Path, Deciding]) -> None:
    path, deciding = round_trip
    wider = TamiyoConfig(policy={"sage_width": 32, "gat_width": 8, "heads": 2})
    with pytest.raises(CheckpointMismatchError, match="parameter shapes"):
        load_checkpoint(
            path,
            CONFIG,
            policy_state=deciding.policy.initial_state(),
            params=abstract_params(wider.policy),
        )


def tamper(path: Path, name: str, value: str) -> None:
    """Change one entry of a checkpoint's metadata on disk, wherever Orbax keeps it."""
    changed = 0
    for file in path.rglob("*"):
        if not file.is_file() or name.encode() not in file.read_bytes():
            continue
        try:
            tree = json.loads(file.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError):
            continue
        entries = tree.get("custom_metadata") or {}
        if name in entries:
            entries[name] = value
            file.write_text(json.dumps(tree))
            changed += 1
    assert changed, f"no metadata named {name}"
    write_digests(path)  # what was tampered with is the content, not the file


@pytest.mark.parametrize("name", ["schema", "schema_version", "registries", "parameters", "graph"])
def test_tampered_metadata_is_refused_by_name(round_trip: tuple[Path, Deciding], name: str) -> None:
    path, deciding = round_trip
    tamper(path, name, "something else")
    with pytest.raises(CheckpointMismatchError) as raised:
        load_checkpoint(
            path,
            CONFIG,
            policy_state=deciding.policy.initial_state(),
            params=deciding.params,
        )
    assert (raised.value.name, raised.value.found) == (name, "something else")


def test_a_checkpoint_is_never_overwritten_and_never_invented(
    round_trip: tuple[Path, Deciding],
) -> None:
    path, deciding = round_trip
    with pytest.raises(PersistenceError, match="never overwritten"):
        save_checkpoint(path, start(deciding), deciding.params, CONFIG)
    with pytest.raises(PersistenceError, match="there is no checkpoint"):
        load_checkpoint(
            path.parent / "nowhere",
            CONFIG,
            policy_state=deciding.policy.initial_state(),
            params=deciding.params,
        )


def test_the_state_s_text_is_exact(deciding: Deciding) -> None:
    state, _ = run(deciding, start(deciding), story(LENGTH))
    state = replace(state, failures=3, truncated=(("layer", 4), ("seed", 2)))
    text = state_to_json(state)
    back = state_from_json(text, deciding.policy.initial_state())
    assert state_to_json(back) == text
    same = {"registries", "risk", "host_breaker", "missing_features", "truncated", "layout"}
    for name in (*same, "steps", "failures"):
        assert getattr(back, name) == getattr(state, name), name
    small = state_to_json(state, registries=False)
    assert "registries" not in json.loads(small)
    joined = state_from_json(small, deciding.policy.initial_state(), registries=state.registries)
    assert state_to_json(joined) == text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"policy_state": 3}', "null"])
def test_text_that_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(CheckpointMismatchError):
        state_from_json(text, heuristic().policy.initial_state())


def test_a_state_of_another_policy_is_refused() -> None:
    ours = state_to_json(start(heuristic()))
    with pytest.raises(CheckpointMismatchError):
        state_from_json(ours, graph().policy.initial_state())


def conclude_as(mode: Mode, action: Action, state: TamiyoState) -> tuple[TamiyoState, Outcome]:
    deciding = with_logits(heuristic(), action)
    blueprint = LIBRARY["host"]
    packet = make_packet(candidate_blueprint_ids=("grow-a",))
    situation = observe(CONFIG, state, packet, blueprint, (LIBRARY["grow-a"],))
    return conclude(
        CONFIG,
        state,
        situation,
        ask(deciding.policy, {}, state.policy_state, situation.observation),
        mode=mode,
        policy_version="a version",
        now_ns=1,
        command_id="a command",
        report_id="a report",
    )


OTHER = {
    Action.BREAKER_OPEN: CircuitBreakerState.OPEN,
    Action.BREAKER_CLOSE: CircuitBreakerState.CLOSED,
}


@pytest.mark.parametrize("action", OTHER)
@pytest.mark.parametrize("mode", [Mode.ACT, Mode.SHADOW])
def test_the_host_s_breaker_follows_commands_that_are_given_and_not_those_of_shadow_mode(
    action: Action, mode: Mode
) -> None:
    (before,) = set(OTHER.values()) - {OTHER[action]}
    state = replace(start(heuristic()), host_breaker=before)
    after, outcome = conclude_as(mode, action, state)
    assert outcome.action == action.name
    assert outcome.command is not None
    assert isinstance(outcome.command.payload, CircuitBreakerAdjustment)
    assert outcome.command.payload.desired_state is OTHER[action]
    assert after.host_breaker is (OTHER[action] if mode is Mode.ACT else before)


@pytest.mark.parametrize("breaker", CircuitBreakerState)
def test_a_breaker_is_only_asked_into_a_state_that_it_is_known_not_to_be_in(
    breaker: CircuitBreakerState,
) -> None:
    state = replace(start(heuristic()), host_breaker=breaker)
    for action, desired in OTHER.items():
        _, outcome = conclude_as(Mode.ACT, action, state)
        legal = breaker not in (desired, CircuitBreakerState.UNKNOWN)
        assert bool(outcome.situation.observation.legality.actions[action]) is legal
        assert (outcome.action == action.name) is legal


def test_a_shadow_pause_spends_no_pause_budget_and_moves_the_rest_alike() -> None:
    state = start(heuristic())
    acted, _ = conclude_as(Mode.ACT, Action.PAUSE, state)
    watched, outcome = conclude_as(Mode.SHADOW, Action.PAUSE, state)
    assert outcome.command is not None
    assert outcome.command.command_type is CommandType.PAUSE
    assert acted.risk.pause_runs == ((0, 0),)
    assert watched.risk.pause_runs == RiskState().pause_runs
    assert state_to_json(replace(watched, risk=acted.risk)) == state_to_json(acted)


def test_registries_grow_only_in_the_state_that_comes_out() -> None:
    state = start(heuristic())
    packet = make_packet(seeds=(make_seed("new", SeedStage.TRAINING),))
    after, _ = decide(heuristic(), state, packet)
    assert "new" in after.registries.seeds
    assert "new" not in state.registries.seeds


def test_a_report_leaves_out_numbers_that_it_could_not_carry() -> None:
    metrics = {"loss_delta": float("nan"), "hook_latency_ms": 1e300, "loss": 0.5}
    packet = make_packet(training_metrics={**make_packet().training_metrics, **metrics})
    _, outcome = decide(heuristic(), start(heuristic()), packet)
    assert not {"loss_delta", "hook_latency_ms"} & set(outcome.report.metrics)
    assert {"value_estimate", "risk_score"} <= set(outcome.report.metrics)
