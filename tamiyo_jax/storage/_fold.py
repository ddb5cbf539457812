"""Fold the records of a journal into state and facts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import MappingProxyType
from typing import TypeVar

from tamiyo_jax.contracts import FieldReport, decode_report, validate_report
from tamiyo_jax.controller import TamiyoState, follow_runs, state_from_json
from tamiyo_jax.errors import InvalidReportError
from tamiyo_jax.graph import Registries
from tamiyo_jax.journal import Record, RecordType, Recovered
from tamiyo_jax.storage import records_pb2 as pb
from tamiyo_jax.storage._facts import Facts, Ledger, Pending
from tamiyo_jax.storage._records import parse, policy_from_proto

__all__ = ["newest_report_before", "recover_facts", "recover_state"]

PolicyState = TypeVar("PolicyState")


def recover_state(
    records: Iterable[Record], policy_state: PolicyState
) -> TamiyoState[PolicyState] | None:
    """Fold a journal's replay into the state after its last record.

    Args:
      records: a SNAPSHOT or RESTORE and all records after it, by ascending sequence.
      policy_state: any state of the same policy, for structure, shapes and dtypes.

    Returns:
      The state, or None where there are no records.

    Raises:
      PersistenceError: a payload cannot be read.
      CheckpointMismatchError: the state is of another policy.
    """
    state: TamiyoState[PolicyState] | None = None
    registries = Registries.empty()
    small: str | None = None
    for record in records:
        match record.type:
            case RecordType.SNAPSHOT | RecordType.RESTORE:
                state = state_from_json(_parse_full_state(record).state, policy_state)
                registries, small = state.registries, None
                continue
            case RecordType.STEP:
                step = parse(pb.Step(), record.payload)
                additions = json.loads(step.registry_additions)
                if additions:
                    registries = registries.apply_additions(additions)
                text = step.state
            case RecordType.OPERATOR:
                text = parse(pb.Operator(), record.payload).state
            case RecordType.POLICY_UPDATE:
                text = parse(pb.PolicyUpdate(), record.payload).state
            case _:
                continue  # publishing does not change the state
        if small is not None and not _supersedes(text, small):
            state = _follow(state, small, policy_state, registries)
        small = text
    return state if small is None else _follow(state, small, policy_state, registries)


def _supersedes(text: str, earlier: str) -> bool:
    """Whether a state's text holds all that an earlier one does: it is of the same run alone."""
    fields, before = json.loads(text), json.loads(earlier)
    return fields.get("run") == before.get("run") and "runs" not in before


def _follow(
    state: TamiyoState[PolicyState] | None,
    text: str,
    policy_state: PolicyState,
    registries: Registries,
) -> TamiyoState[PolicyState]:
    """The state after a record that has no registries, and mostly no idle runs."""
    after = state_from_json(text, policy_state, registries=registries)
    fields = json.loads(text)
    if state is None or "runs" in fields:
        return after
    return follow_runs(state, after, fields.get("idle_runs", 0))


def recover_facts(recovered: Recovered) -> Facts:
    """Fold a journal into the facts after its last record.

    A pending report whose STEP record was lost cannot be published any more: it is not
    pending, and ``recovered.corrupt`` or a REPAIR record lists the loss. A report without id
    or time of issue is ignored.

    Raises:
      PersistenceError: a payload cannot be read.
    """
    ledger = Ledger(Facts())
    for record in recovered.replay:
        match record.type:
            case RecordType.SNAPSHOT | RecordType.RESTORE:
                ledger = Ledger(_read_facts(_parse_full_state(record).facts, recovered))
            case RecordType.STEP:
                ledger.add_reports(record.sequence, _read_reports(record))
            case RecordType.ACK | RecordType.DROP:
                ledger.settle(parse(pb.Publication(), record.payload).report_id)
            case RecordType.RETRY:
                retry = parse(pb.Publication(), record.payload)
                ledger.reschedule(retry.report_id, retry.attempts, retry.not_before_ns)
            case RecordType.POLICY_UPDATE:
                ledger.add_policy(
                    policy_from_proto(parse(pb.PolicyUpdate(), record.payload).policy)
                )
            case _:
                pass
    return ledger.facts


def newest_report_before(snapshot: Record) -> int:
    """The latest time of issue among all reports before a SNAPSHOT, nanoseconds."""
    return _parse_full_state(snapshot).facts.newest_report_ns


def _parse_full_state(record: Record) -> pb.Snapshot | pb.Restore:
    if record.type is RecordType.SNAPSHOT:
        return parse(pb.Snapshot(), record.payload)
    return parse(pb.Restore(), record.payload)


def _read_facts(stored: pb.Facts, recovered: Recovered) -> Facts:
    """The facts of a SNAPSHOT; pending reports are read from their STEP records."""
    pending: dict[str, Pending] = {}
    for entry in stored.pending:
        step = recovered.find(entry.sequence)
        if step is not None:
            for report in _read_reports(step):
                if report.report_id == entry.report_id:
                    pending[entry.report_id] = Pending(
                        entry.sequence, entry.attempts, entry.not_before_ns, report
                    )
    return Facts(
        publishing=stored.publishing,
        pending=MappingProxyType(pending),
        policies=tuple(policy_from_proto(policy) for policy in stored.policies),
        newest_report_ns=stored.newest_report_ns,
        settings=stored.settings,
    )


def _read_reports(record: Record) -> list[FieldReport]:
    """The valid reports of a STEP record."""
    step = parse(pb.Step(), record.payload)
    reports: list[FieldReport] = []
    for data in (step.report, *step.closed_windows):
        try:
            report = decode_report(data)
            validate_report(report)
        except InvalidReportError:
            continue
        reports.append(report)
    return reports
