"""The fold: what the records of a journal add up to, state and facts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import MappingProxyType
from typing import TypeVar

from tamiyo_jax.contracts import FieldReport, decode_report, validate_report
from tamiyo_jax.controller import TamiyoState, state_from_json
from tamiyo_jax.errors import InvalidReportError
from tamiyo_jax.graph import Registries
from tamiyo_jax.storage import records_pb2 as pb
from tamiyo_jax.storage.facts import Facts, Ledger, Pending
from tamiyo_jax.storage.frames import Record, RecordType
from tamiyo_jax.storage.records import parse, policy_from_proto
from tamiyo_jax.storage.recovery import Recovered

__all__ = ["newest_report_before", "recover_facts", "recover_state"]

PolicyState = TypeVar("PolicyState")


def recover_state(
    records: Iterable[Record], policy_state: PolicyState
) -> TamiyoState[PolicyState] | None:
    """Fold a journal's replay into the state after its last record.

    Args:
      records: a SNAPSHOT or RESTORE and all that follows it, by ascending sequence.
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
                state = state_from_json(_whole(record).state, policy_state)
                registries, small = state.registries, None
            case RecordType.STEP:
                step = parse(pb.Step(), record.payload)
                additions = json.loads(step.registry_additions)
                if additions:
                    registries = registries.apply_additions(additions)
                small = step.state
            case RecordType.OPERATOR:
                small = parse(pb.Operator(), record.payload).state
            case RecordType.POLICY_UPDATE:
                small = parse(pb.PolicyUpdate(), record.payload).state
            case _:
                pass  # facts about publishing, not about what decides
    return state if small is None else state_from_json(small, policy_state, registries=registries)


def recover_facts(recovered: Recovered) -> Facts:
    """Fold a journal into the facts after its last record.

    A pending report whose STEP record was lost cannot be published any more: it is not
    pending, and the loss stands in ``recovered.corrupt`` or in a REPAIR record. A report
    without id or time of issue is no report.

    Raises:
      PersistenceError: a payload cannot be read.
    """
    ledger = Ledger(Facts())
    for record in recovered.replay:
        match record.type:
            case RecordType.SNAPSHOT | RecordType.RESTORE:
                ledger = Ledger(_facts(_whole(record).facts, recovered))
            case RecordType.STEP:
                ledger.reported(record.sequence, _reports(record))
            case RecordType.ACK | RecordType.DROP:
                ledger.settled(parse(pb.Publication(), record.payload).report_id)
            case RecordType.RETRY:
                retry = parse(pb.Publication(), record.payload)
                ledger.retried(retry.report_id, retry.attempts, retry.not_before_ns)
            case RecordType.POLICY_UPDATE:
                ledger.applied(policy_from_proto(parse(pb.PolicyUpdate(), record.payload).policy))
            case _:
                pass
    return ledger.facts


def newest_report_before(snapshot: Record) -> int:
    """The latest time of issue among all reports before a SNAPSHOT, nanoseconds."""
    return _whole(snapshot).facts.newest_report_ns


def _whole(record: Record) -> pb.Snapshot | pb.Restore:
    if record.type is RecordType.SNAPSHOT:
        return parse(pb.Snapshot(), record.payload)
    return parse(pb.Restore(), record.payload)


def _facts(stored: pb.Facts, recovered: Recovered) -> Facts:
    """Facts as a SNAPSHOT has them; the pending reports are looked up in their STEP records."""
    pending: dict[str, Pending] = {}
    for one in stored.pending:
        step = recovered.find(one.sequence)
        if step is not None:
            for report in _reports(step):
                if report.report_id == one.report_id:
                    pending[one.report_id] = Pending(
                        one.sequence, one.attempts, one.not_before_ns, report
                    )
    return Facts(
        publishing=stored.publishing,
        pending=MappingProxyType(pending),
        policies=tuple(policy_from_proto(policy) for policy in stored.policies),
        newest_report_ns=stored.newest_report_ns,
    )


def _reports(record: Record) -> list[FieldReport]:
    """The reports of a STEP record, without those that break their contract."""
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
