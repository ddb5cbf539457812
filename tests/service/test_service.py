"""The service: what a training loop sees of it, and what is on disk afterwards."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from making import SECRET, Clock, make_config, make_library, make_packet, open_tamiyo, story

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import CommandType, ReportOutcome, Secret, TelemetryLevel, signature_of
from tamiyo_jax.controller import TamiyoState, state_to_json
from tamiyo_jax.errors import (
    CircuitOpenError,
    ConfigurationError,
    DeadlineExceededError,
    DirectoryLockedError,
    InvalidPacketError,
    MissingBlueprintIdError,
    MissingParametersError,
    MissingSecretError,
    NonFiniteOutputError,
    NoSeedCandidatesError,
    PolicyFailureError,
    TamiyoError,
    UnknownBlueprintError,
)
from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.policy import GraphPolicy, HeuristicPolicy, init_params
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.storage import StepRecord, decode_step
from tamiyo_jax.telemetry import MemorySink


def steps_on_record(directory: Path) -> list[StepRecord]:
    records = read_journal(directory).records
    return [decode_step(record.payload) for record in records if record.type is RecordType.STEP]


def without_failures(state: TamiyoState) -> TamiyoState:
    return replace(state, failures=0)


def run_steps(tamiyo: Tamiyo, packets: list) -> list[tuple]:
    """What a controller decides upon packets: everything but ids, times and latencies."""
    decided = []
    for packet in packets:
        decision = tamiyo.step(packet)
        command = decision.command
        decided.append(
            (
                decision.action,
                decision.reason,
                decision.value,
                decision.risk_score,
                None if command is None else (command.target_seed_id, command.payload),
                [(event.name, event.level) for event in decision.events],
            )
        )
    return decided


def test_a_decision_is_signed_and_on_record_with_its_report(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        decision = tamiyo.step(make_packet(seeds=story(8)[4].seeds))
    assert decision.action == "ADVANCE"
    assert decision.command is not None
    assert decision.command.command_type is CommandType.SEED
    assert decision.command.target_seed_id == "s0"
    assert decision.command.annotations["signature"] == signature_of(
        decision.command, Secret(SECRET)
    )
    (step,) = steps_on_record(tmp_path)
    assert step.command == decision.command
    assert step.report.report_id == decision.report_id
    assert step.report.command_id == decision.command.command_id
    assert step.packet is not None
    assert step.packet.packet_id == "packet-0"
    assert step.outputs is not None
    assert step.mask is not None
    assert step.mask["actions"].dtype == np.bool_


def test_waiting_is_a_decision_with_a_report_of_its_own(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        decision = tamiyo.step(make_packet())
    assert (decision.action, decision.command) == ("WAIT", None)
    (step,) = steps_on_record(tmp_path)
    assert step.report.outcome is ReportOutcome.NEUTRAL


def test_a_shadow_decision_is_not_signed(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path, mode="shadow") as tamiyo:
        decision = tamiyo.step(make_packet(validation_loss=math.nan))
    assert decision.shadow
    assert decision.command is not None
    assert decision.command.command_type is CommandType.PAUSE
    assert "signature" not in decision.command.annotations


def test_guard_mode_waits_brakes_and_rolls_back_without_a_policy(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path, mode="guard") as tamiyo:
        assert tamiyo.step(make_packet(0)).action == "WAIT"
        braked = tamiyo.step(make_packet(1, validation_loss=1.0))
        again = tamiyo.step(make_packet(2, validation_loss=1.1))
        rolled = tamiyo.step(
            make_packet(3, validation_loss=math.inf, restorable_checkpoint="step-10")
        )
    assert braked.action == "OPTIMIZER"
    assert braked.command is not None
    assert braked.command.payload.hyperparameters == {"lr_delta": -0.3}
    assert again.action == "WAIT"
    assert rolled.action == "ROLLBACK"
    assert rolled.command.payload.checkpoint == "step-10"
    assert rolled.value is None


@pytest.mark.parametrize(
    ("packet", "error"),
    [
        (make_packet(blueprint_id=""), MissingBlueprintIdError),
        (make_packet(blueprint_id="nowhere"), UnknownBlueprintError),
        (make_packet(candidate_blueprint_ids=("nowhere",)), UnknownBlueprintError),
        (make_packet(seeds=()), NoSeedCandidatesError),
        (make_packet(current_epoch=-1), InvalidPacketError),
    ],
)
def test_a_failed_step_raises_reports_and_changes_nothing_else(
    tmp_path: Path, packet, error: type[TamiyoError]
) -> None:
    sink = MemorySink()
    with open_tamiyo(tmp_path, sinks=(sink,)) as tamiyo:
        tamiyo.step(make_packet())
        before = tamiyo.state
        with pytest.raises(error):
            tamiyo.step(packet)
        assert tamiyo.state.failures == before.failures + 1
        assert state_to_json(without_failures(tamiyo.state)) == state_to_json(before)
    _, failed = steps_on_record(tmp_path)
    assert failed.report.outcome is ReportOutcome.ABORTED
    assert failed.command is None
    assert error.__name__ in failed.report.notes
    (event,) = [event for event in sink.events if event.name == "step_failed"]
    assert event.level is TelemetryLevel.CRITICAL


class Broken:
    """A policy that fails as its class attribute says."""

    failure: BaseException | None = None

    def __init__(self, config: TamiyoConfig) -> None:
        self._inner = HeuristicPolicy(config.heuristic, config.policy)

    def initial_state(self):
        return self._inner.initial_state()

    def decide(self, params, policy_state, observation):
        if Broken.failure is not None:
            raise Broken.failure
        return self._inner.decide(params, policy_state, observation)


class NaN(Broken):
    def decide(self, params, policy_state, observation):
        state, outputs = self._inner.decide(params, policy_state, observation)
        return state, outputs._replace(value=np.float32(np.nan))


class Slow(Broken):
    calls = 0

    def decide(self, params, policy_state, observation):
        import time

        Slow.calls += 1
        time.sleep(0.05)
        return self._inner.decide(params, policy_state, observation)


def test_a_custom_policy_runs_by_its_name(tmp_path: Path) -> None:
    Broken.failure = None
    with open_tamiyo(tmp_path, policy=f"{__name__}:Broken") as tamiyo:
        assert tamiyo.step(make_packet()).action == "WAIT"


def test_a_policy_failure_propagates_with_its_cause_and_opens_the_breaker(tmp_path: Path) -> None:
    clock, cause = Clock(), RuntimeError("the network is broken")
    Broken.failure = cause
    config = make_config(breakers={"failures": 3, "cooldown_ms": 1000.0})
    with open_tamiyo(tmp_path, policy=f"{__name__}:Broken", clock=clock, config=config) as tamiyo:
        for _ in range(3):
            with pytest.raises(PolicyFailureError, match="the network is broken") as raised:
                tamiyo.step(make_packet())
            assert raised.value.__cause__ is cause
        with pytest.raises(CircuitOpenError):
            tamiyo.step(make_packet())
        assert tamiyo.state.risk.conservative is not None
        Broken.failure = None
        clock.now_ns += 2_000_000_000
        assert tamiyo.step(make_packet()).reason == "conservative_mode"
        assert tamiyo.state.risk.inference.failures == 0


def test_outputs_that_are_not_finite_are_an_error_and_never_a_command(tmp_path: Path) -> None:
    with (
        open_tamiyo(tmp_path, policy=f"{__name__}:NaN") as tamiyo,
        pytest.raises(NonFiniteOutputError, match="value"),
    ):
        tamiyo.step(make_packet())


def test_a_late_answer_is_discarded_and_is_a_deadline_error(tmp_path: Path) -> None:
    config = make_config(deadlines={"inference_ms": 10.0, "metadata_ms": 60_000.0})
    with open_tamiyo(tmp_path, policy=f"{__name__}:Slow", config=config) as tamiyo:
        before = tamiyo.state
        with pytest.raises(DeadlineExceededError) as raised:
            tamiyo.step(make_packet())
        assert raised.value.stage == "inference"
        assert tamiyo.state.policy_state == before.policy_state
        assert tamiyo.state.risk.inference.failures == 1


FOUR_BLENDS = {"blending_methods": ("linear", "cosine", "warmup_hold", "step")}


def test_a_graph_policy_that_the_shipped_parameters_do_not_fit_is_refused_before_anything_is_made(
    tmp_path: Path,
) -> None:
    with pytest.raises(MissingParametersError, match="blending"):
        open_tamiyo(tmp_path / "run", policy="graph", config=make_config(policy=FOUR_BLENDS))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("secret", [None, b"short"])
def test_without_a_good_secret_nothing_is_created(
    tmp_path: Path, secret: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAMIYO_SECRET", raising=False)
    with pytest.raises(MissingSecretError):
        open_tamiyo(tmp_path / "run", secret=secret)
    assert not (tmp_path / "run").exists()


def test_the_secret_can_come_from_the_variable_that_the_configuration_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMIYO_SECRET", "sixteen bytes or more")
    with open_tamiyo(tmp_path, secret=None) as tamiyo:
        assert "sixteen" not in repr(tamiyo)


def test_a_directory_has_one_owner_and_the_error_names_it(tmp_path: Path) -> None:
    with (
        open_tamiyo(tmp_path),
        pytest.raises(DirectoryLockedError) as raised,
    ):
        open_tamiyo(tmp_path)
    assert raised.value.pid == os.getpid()
    with open_tamiyo(tmp_path):
        pass


def test_an_unknown_policy_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"package\.module:factory"):
        open_tamiyo(tmp_path, policy="best")


def test_a_policy_of_the_main_program_is_for_this_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_policy(config: TamiyoConfig) -> HeuristicPolicy:
        return HeuristicPolicy(config.heuristic, config.policy)

    monkeypatch.setattr(sys.modules["__main__"], "make_policy", make_policy, raising=False)
    with pytest.raises(ConfigurationError, match="module of its own, or open with isolation"):
        open_tamiyo(tmp_path, policy="__main__:make_policy", isolation="process")
    with open_tamiyo(tmp_path, policy="__main__:make_policy", isolation="inline") as tamiyo:
        assert tamiyo.step(make_packet()).action == "WAIT"


def graph_arguments() -> dict:
    config = make_config()
    params = init_params(config.policy, jax.random.key(0))
    kernel = params["policy_logits"]["kernel"]
    trained = jax.random.normal(jax.random.key(1), kernel.shape)  # untrained ones are all zero
    head = {**params["policy_logits"], "kernel": trained}
    return {"config": config, "policy": "graph", "params": {**params, "policy_logits": head}}


@pytest.mark.parametrize("policy", ["heuristic", pytest.param("graph", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cut", [1, 13, 29])
def test_a_reopened_run_decides_as_an_unbroken_one(tmp_path: Path, policy: str, cut: int) -> None:
    arguments = graph_arguments() if policy == "graph" else {}
    packets = story(30)
    with open_tamiyo(tmp_path / "whole", **arguments) as tamiyo:
        whole = run_steps(tamiyo, packets)
        final = state_to_json(tamiyo.state)
    with open_tamiyo(tmp_path / "broken", **arguments) as tamiyo:
        run_steps(tamiyo, packets[:cut])
    with open_tamiyo(tmp_path / "broken", **arguments) as tamiyo:
        assert run_steps(tamiyo, packets[cut:]) == whole[cut:]
        assert state_to_json(tamiyo.state) == final


def test_an_explicit_state_wins_over_the_directory_and_is_on_record(tmp_path: Path) -> None:
    packets = story(30)
    with open_tamiyo(tmp_path) as tamiyo:
        run_steps(tamiyo, packets[:10])
        saved = tamiyo.state
        expected = run_steps(tamiyo, packets[10:20])
    with open_tamiyo(tmp_path, state=saved) as tamiyo:
        assert run_steps(tamiyo, packets[10:20]) == expected
        final = state_to_json(tamiyo.state)
    assert RecordType.RESTORE in {record.type for record in read_journal(tmp_path).records}
    with open_tamiyo(tmp_path) as tamiyo:
        assert state_to_json(tamiyo.state) == final


def test_one_compile_of_the_policy_per_run(tmp_path: Path, count_compilations) -> None:
    arguments = graph_arguments()
    arguments["config"] = make_config(graph={"max_seeds": 5})  # a layout that no test compiled
    with open_tamiyo(tmp_path, **arguments) as tamiyo:
        with count_compilations() as first:
            tamiyo.step(story(1)[0])
        with count_compilations() as rest:
            run_steps(tamiyo, story(40)[1:])
    assert sum("policy_step" in name for name in first.names) == 1
    assert rest.names == []


def test_conservative_mode_by_hand_survives_reopening(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        tamiyo.set_conservative(True, "maintenance")
    with open_tamiyo(tmp_path) as tamiyo:
        for packet in story(10):
            assert tamiyo.step(packet).reason in {"conservative_mode", "loss_spike"}
        tamiyo.set_conservative(False, "over")
        assert tamiyo.step(make_packet(11, validation_loss=0.5)).reason == "heuristic:wait"


def test_after_open_nothing_reads_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tamiyo(tmp_path / "a") as tamiyo:
        expected = run_steps(tamiyo, story(10))
    with open_tamiyo(tmp_path / "b") as tamiyo:
        monkeypatch.setenv("TAMIYO__RISK__LOSS_SPIKE", "0.0001")
        monkeypatch.setenv("TAMIYO_SECRET", "another secret, long enough")
        assert run_steps(tamiyo, story(10)) == expected


def test_without_recorded_packets_the_report_and_the_state_are_still_there(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path, config=make_config(storage={"record_packets": False})) as tamiyo:
        tamiyo.step(make_packet())
        state = state_to_json(tamiyo.state)
    (step,) = steps_on_record(tmp_path)
    assert step.packet is None
    assert step.report.metrics["risk_score"] < 1e-6
    with open_tamiyo(tmp_path) as tamiyo:
        assert state_to_json(tamiyo.state) == state


def test_graph_policy_satisfies_the_protocol_that_custom_policies_do() -> None:
    for name in ("initial_state", "decide"):
        assert callable(getattr(GraphPolicy, name))


def test_library_revisions_are_noticed_by_the_next_step(tmp_path: Path) -> None:
    library = make_library()
    with open_tamiyo(tmp_path, library=library) as tamiyo:
        tamiyo.step(make_packet())
        library.delete("grow-a")
        with pytest.raises(UnknownBlueprintError):
            tamiyo.step(make_packet(1))


def test_every_decision_says_why_and_the_journal_keeps_it(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        decisions = [tamiyo.step(packet) for packet in story(18)]
    assert all(decision.explanation for decision in decisions)
    assert "policy" not in {decision.reason for decision in decisions}
    spikes = [decision for decision in decisions if decision.reason == "loss_spike"]
    assert all("limit 0.15" in decision.explanation for decision in spikes)
    assert spikes
    records = read_journal(tmp_path).records
    steps = [decode_step(record.payload) for record in records if record.type is RecordType.STEP]
    assert [step.explanation for step in steps] == [decision.explanation for decision in decisions]
