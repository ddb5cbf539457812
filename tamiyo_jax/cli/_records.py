"""Render records of a journal as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from tamiyo_jax.cli._output import plain
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CircuitBreakerAdjustment,
    OptimizerAdjustment,
    Rollback,
    SeedAdjustment,
    SystemStatePacket,
)
from tamiyo_jax.storage import (
    Content,
    Entry,
    OperatorRecord,
    PolicyRecord,
    PublicationRecord,
    StateRecord,
    StepRecord,
    Unreadable,
)

__all__ = ["as_json", "as_text"]


def as_json(entry: Entry) -> dict[str, object]:
    """Convert a record to JSON, complete; arrays as lists, states as objects."""
    head = {"sequence": entry.record.sequence, "type": entry.record.type.name}
    if isinstance(entry.content, tuple):
        return {**head, "lost": plain(entry.content)}
    content: dict[str, Any] = plain(entry.content)
    if "state" in content:
        content["state"] = plain(json.loads(content["state"]))
    return head | content


def as_text(entry: Entry) -> Iterator[str]:
    """Render a record as a line, followed by indented lines for a step."""
    yield f"{entry.record.sequence:>8}  {entry.record.type.name:<13}  {_headline(entry.content)}"
    if isinstance(entry.content, StepRecord):
        yield from (f"{'':10}{line}".rstrip() for line in _step(entry.content))


def _headline(content: Content | Unreadable) -> str:
    match content:
        case StepRecord(report, action, mode):
            return f"{_time(report.issued_at_ns)}  {action or 'FAILED'}  ({mode})"
        case OperatorRecord(action, detail):
            return f"{action}: {detail}"
        case PublicationRecord(report_id, attempts, not_before_ns):
            failed = f"  attempt {attempts} failed, next {_time(not_before_ns)}"
            return report_id + (failed if attempts else "")
        case PolicyRecord(policy):
            return f"{policy.policy_id}  version {policy.version}  sha256 {policy.digest}"
        case StateRecord(state, origin, pending):
            waiting = f", {len(pending)} reports to publish" if pending else ""
            return f"{len(state)} characters of state{f' from {origin}' if origin else ''}{waiting}"
        case Unreadable(reason):
            return f"unreadable: {reason}"
        case holes:
            return "lost " + ", ".join(f"{hole.first}..{hole.last}" for hole in holes)


def _step(step: StepRecord) -> Iterator[str]:
    if step.explanation:
        yield f"because  {step.explanation}"
    if step.packet is not None:
        yield from _packet(step.packet)
    if step.command is not None:
        yield from _command(step.command)
    for report in step.reports:
        yield f"report   {report.report_id}  {report.outcome.name}  {_numbers(report.metrics)}"
        if report.notes:
            yield f"         {report.notes}"


def _packet(packet: SystemStatePacket) -> Iterator[str]:
    losses = {"validation_loss": packet.validation_loss, "training_loss": packet.training_loss}
    yield (
        f"packet   {packet.packet_id}  run {packet.training_run_id}  epoch {packet.current_epoch}"
        f"  step {packet.global_step}  blueprint {packet.blueprint_id}"
    )
    yield f"         {_numbers({k: v for k, v in losses.items() if v is not None})}"
    if packet.seeds:
        seeds = ", ".join(f"{seed.seed_id} {seed.stage.name}" for seed in packet.seeds)
        yield f"         seeds {seeds}"


def _command(command: AdaptationCommand) -> Iterator[str]:
    signed = "signed" if "signature" in command.annotations else "not signed"
    reason = command.annotations.get("risk_reason", "")
    yield f"command  {command.command_id}  {command.command_type.name}  reason {reason}  {signed}"
    match command.payload:
        case SeedAdjustment(operation, blueprint_id, parameters):
            grown = "" if blueprint_id is None else f" into {blueprint_id}"
            seed = command.target_seed_id
            yield f"         {operation.name} {seed}{grown}  {_numbers(parameters)}"
        case OptimizerAdjustment(optimizer_id, hyperparameters):
            yield f"         {optimizer_id}  {_numbers(hyperparameters)}"
        case CircuitBreakerAdjustment(desired_state, rationale):
            yield f"         {desired_state.name}  {rationale}"
        case Rollback(checkpoint):
            yield f"         to {checkpoint}"
        case None:
            pass


def _numbers(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {number:.6g}" for name, number in numbers.items())


def _time(nanoseconds: int | None) -> str:
    """Format a time in UTC to the millisecond."""
    if not nanoseconds:
        return "at once"
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")
