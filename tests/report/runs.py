"""Runs to report on: real journals, written by a controller or record by record."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from making import Clock, make_packet, make_seed, open_tamiyo

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CommandType,
    FieldReport,
    ReportOutcome,
    Rollback,
    SeedStage,
    SystemStatePacket,
)
from tamiyo_jax.controller import initial_state, state_to_json
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.journal import Record, RecordType, Recovered
from tamiyo_jax.report import Run
from tamiyo_jax.report._run import RunBuilder
from tamiyo_jax.storage import Entry, StepRecord, StorageManager

START_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
STATE = state_to_json(initial_state(None), registries=False)
LAYERS = ("dense/kernel", "dense/bias", "readout")


def packets(
    count: int, *, broken: Iterable[int] = (), seeds: bool = True
) -> list[SystemStatePacket]:
    """Of a run whose loss falls; a broken one has a loss and gradients that are not finite."""
    return [one_packet(step, step in set(broken), seeds) for step in range(1, count + 1)]


def one_packet(step: int, broken: bool, seeds: bool) -> SystemStatePacket:
    loss = math.nan if broken else 0.5 + 1.0 / step
    gradient = math.nan if broken else 1.0 / step
    stages = (SeedStage.DORMANT, SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING)
    grown = [
        make_seed("s0", stages[min(step // 5, 3)], metrics={"alpha": 0.5, "contribution": 0.1}),
        make_seed("s1"),
    ]
    return make_packet(
        step,
        training_loss=loss,
        validation_loss=loss * 1.1,
        validation_accuracy=1 - 0.5 / step,
        restorable_checkpoint="step-10",
        seeds=tuple(grown) if seeds else (),
        timestamp_ns=START_NS,
        training_metrics={
            "loss": loss,
            "gradient_norm": gradient,
            "grad_var": 0.1,
            "hook_latency_ms": 1.0,
            "live_parameters": 300.0 if step < 10 else 900.0,
            **{f"layer/{layer}/gradient_norm": gradient for layer in LAYERS},
        },
    )


def decide_run(directory: Path, some: Iterable[SystemStatePacket], **arguments: Any) -> Path:
    """Let a controller decide upon packets, and return its run; a step may raise."""
    with open_tamiyo(directory, clock=Clock(START_NS), **arguments) as tamiyo:
        for packet in some:
            with suppress(TamiyoError):
                tamiyo.step(packet)
    return directory


def write_run(directory: Path, some: Iterable[StepRecord]) -> Path:
    """Write a run with these records, and return its directory."""
    config = StorageConfig(retention_hours=1e9)
    state = initial_state(None)
    with StorageManager.open(directory, config, None, clock=Clock(START_NS)) as manager:
        manager.start(state)
        for step in some:
            manager.append_step(step, state)
    return directory


def record(
    number: int,
    packet: SystemStatePacket | None,
    *,
    action: str = "WAIT",
    reason: str = "policy",
    command: AdaptationCommand | None = None,
    **fields: Any,
) -> StepRecord:
    """One step, a second after the one before."""
    report = FieldReport(
        report_id=f"r{number}",
        command_id="" if command is None else command.command_id,
        training_run_id="run",
        seed_id="" if command is None else command.target_seed_id or "",
        blueprint_id="host",
        outcome=ReportOutcome.NEUTRAL if action else ReportOutcome.ABORTED,
        issued_at_ns=START_NS + number * SECOND_NS,
        metrics={"loss_delta": 0.01, "inference_ms": 2.0},
        tamiyo_policy_version="heuristic-1",
        notes=reason,
    )
    return StepRecord(report, action, "act", STATE, packet, command, **fields)


def rollback(number: int, checkpoint: str = "step-10") -> AdaptationCommand:
    return AdaptationCommand(
        f"c{number}", CommandType.ROLLBACK, START_NS, 100, payload=Rollback(checkpoint)
    )


def long_run(directory: Path, steps: int, every: int) -> Run:
    """A run of many steps; at each so many it acted, each time for a reason of its own.

    As `read_run` would return it; writing and reading that many records takes minutes.
    """
    builder = RunBuilder()
    packet = one_packet(1, broken=False, seeds=True)
    for number in range(1, steps + 1):
        loss = 0.5 + 1.0 / number + 0.1 * math.sin(number)
        metrics = {
            "loss": loss,
            "gradient_norm": abs(math.sin(number)),
            "hook_latency_ms": 1 + abs(math.cos(number)),
            "grad_var": abs(math.sin(number / 7)),
            "live_parameters": 300.0 + number,
            **{f"layer/L{i}/gradient_norm": abs(math.sin(number * i)) for i in range(1, 13)},
        }
        stage = SeedStage(1 + number * 5 // steps)
        made = replace(
            packet,
            global_step=number,
            training_loss=loss,
            validation_loss=1.1 * loss,
            training_metrics=metrics,
            seeds=(replace(packet.seeds[0], stage=stage), packet.seeds[1]),
        )
        step = record(number, made)
        if number % every == 0:
            reason = f"loss_spike: rose {loss:.6f} above its median"
            step = record(number, made, action="ROLLBACK", reason=reason, command=rollback(number))
        builder.add(Entry(Record(number, 0, RecordType.STEP, b""), step))
    nothing_lost = Recovered((), (), (), (), (), steps, steps)
    return builder.run(
        directory, nothing_lost, holder=None, stopped="", free_bytes=10**12, read_ns=START_NS
    )
