"""A step that fails raises, is reported and recorded, and leaves the state as it was."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from making import make_blueprint, make_config, make_packet, open_tamiyo
from troubles import sleep, trouble_metrics

from tamiyo_jax.contracts import Blueprint, CircuitBreakerState, ReportOutcome, TelemetryLevel
from tamiyo_jax.controller import state_to_json
from tamiyo_jax.errors import (
    CircuitOpenError,
    DeadlineExceededError,
    MissingBlueprintIdError,
    MissingFeatureError,
    PersistenceError,
)
from tamiyo_jax.journal import read_journal
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.storage import StepRecord, read_entries
from tamiyo_jax.telemetry import MemorySink


def critical(sink: MemorySink) -> list[str]:
    return [event.name for event in sink.events if event.level is TelemetryLevel.CRITICAL]


def test_blueprint_identity_is_never_taken_from_packet_or_run(tmp_path: Path) -> None:
    packet = make_packet(blueprint_id="", packet_id="host", training_run_id="host")
    with open_tamiyo(tmp_path) as tamiyo, pytest.raises(MissingBlueprintIdError):
        tamiyo.step(packet)


class SlowLibrary(MemoryBlueprintLibrary):
    """A library that answers each question late."""

    def get(self, blueprint_id: str) -> Blueprint | None:
        time.sleep(0.02)
        return super().get(blueprint_id)


def test_late_blueprints_are_an_error_and_never_a_pause(tmp_path: Path) -> None:
    library, sink = SlowLibrary(), MemorySink()
    for name in ("host", "grow-a", "grow-b"):
        library.put(make_blueprint(name))
    config = make_config(deadlines={"metadata_ms": 5.0, "inference_ms": 60_000.0})
    with open_tamiyo(tmp_path, library=library, sinks=(sink,), config=config) as tamiyo:
        with pytest.raises(DeadlineExceededError, match=r"metadata_ms") as raised:
            tamiyo.step(make_packet())
        assert raised.value.stage == "metadata"
        assert tamiyo.state.risk.metadata.failures == 1
        assert tamiyo.state.risk.metadata.state is CircuitBreakerState.CLOSED
        assert tamiyo.state.steps == 0
    assert critical(sink) == ["step_failed"]


@pytest.mark.slow
def test_timeouts_escalate_and_never_pause(tmp_path: Path) -> None:
    sink = MemorySink()
    hung = make_packet(1, training_metrics=trouble_metrics(sleep))
    with open_tamiyo(
        tmp_path,
        policy="troubles:Troubled",
        isolation="process",
        clock=time.time_ns,
        sinks=(sink,),
        config=make_config(
            deadlines={"inference_ms": 300.0, "metadata_ms": 60_000.0, "spares": 2},
            breakers={"failures": 2, "cooldown_ms": 60_000.0},
        ),
    ) as tamiyo:
        tamiyo.step(make_packet())
        until_warm(tamiyo, 3)
        before = tamiyo.state
        for _ in range(2):
            with pytest.raises(DeadlineExceededError, match="its worker was ended"):
                tamiyo.step(hung)
        with pytest.raises(CircuitOpenError):
            tamiyo.step(hung)
        assert tamiyo.state.risk.inference.state is CircuitBreakerState.OPEN
        assert tamiyo.state.risk.conservative is not None
        assert (tamiyo.state.steps, tamiyo.state.failures) == (1, before.failures + 3)
        until_warm(tamiyo, 3)  # those that were ended have been replaced
    assert critical(sink) == ["step_failed", "step_failed", "breaker_event", "step_failed"]
    _, *failed = steps_on_record(tmp_path)
    assert [step.report.outcome for step in failed] == [ReportOutcome.ABORTED] * 3
    assert [(step.action, step.command) for step in failed] == [("", None)] * 3


def until_warm(tamiyo: Tamiyo, workers: int) -> None:
    deadline = time.monotonic() + 60.0
    while len(tamiyo._steps.deployed.runner.pool.pids()) < workers:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline, "no worker took the place of another"
        time.sleep(0.01)


def steps_on_record(directory: Path) -> list[StepRecord]:
    entries = read_entries(read_journal(directory))
    return [entry.content for entry in entries if isinstance(entry.content, StepRecord)]


def test_a_write_that_fails_is_reported_and_raised_and_the_state_is_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sink = MemorySink()
    with open_tamiyo(tmp_path, sinks=(sink,)) as tamiyo:
        assert tamiyo.step(make_packet()).ticket.wait()
        before = state_to_json(tamiyo.state)
        with monkeypatch.context() as disk:
            disk.setattr(os, "write", full)
            with pytest.raises(PersistenceError, match="disk is full"):
                tamiyo.step(make_packet(1))
        assert state_to_json(tamiyo.state) == before
        with pytest.raises(PersistenceError):
            tamiyo.step(make_packet(2))
    assert critical(sink)[0] == "persistence_failure"
    with open_tamiyo(tmp_path) as tamiyo:
        assert state_to_json(tamiyo.state) == before


def test_a_missing_feature_is_reported_and_a_missing_required_feature_stops_the_step(
    tmp_path: Path,
) -> None:
    sink = MemorySink()
    packet = make_packet()
    metrics = dict(packet.training_metrics)
    del metrics["gradient_norm"]
    with open_tamiyo(tmp_path, sinks=(sink,)) as tamiyo:
        tamiyo.step(packet)
        seeds = tuple(replace(seed, gradient_norm=None) for seed in packet.seeds)
        decision = tamiyo.step(make_packet(1, seeds=seeds))
        (event,) = [event for event in decision.events if event.name == "feature_missing"]
        assert event.attributes == {"features": "seed.gradient_norm"}
        with pytest.raises(MissingFeatureError, match=r"global\.gradient_norm"):
            tamiyo.step(make_packet(2, training_metrics=metrics))
    assert critical(sink) == ["step_failed"]
