"""Facts that a restore does not rewind: which reports were published, which policies applied.

Everything that decisions depend on is in `TamiyoState`, which a restore sets back. That a bus
has accepted a report, or that a policy update was applied, stays true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from tamiyo_jax.contracts import FieldReport
from tamiyo_jax.controller import AppliedPolicy
from tamiyo_jax.errors import PersistenceError

__all__ = ["Facts", "Ledger", "Pending"]


@dataclass(frozen=True, slots=True)
class Pending:
    """A report that the bus has not accepted yet.

    Attributes:
      sequence: the STEP record that holds it.
      attempts: number of failed attempts to publish it.
      not_before_ns: time of the next attempt, nanoseconds since the epoch; 0 is at once.
      report: the report.
    """

    sequence: int
    attempts: int
    not_before_ns: int
    report: FieldReport


def _make_empty() -> Mapping[str, Pending]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts after a record.

    Attributes:
      publishing: whether there is a bus; without a bus no report is pending.
      pending: reports that the bus has not accepted yet, by id, oldest first.
      policies: the applied policy updates, in order.
      newest_report_ns: the latest time of issue among all reports so far; 0 before the first.
      settings: the configuration of the controller as JSON; empty where it is not known. For
        people who read the journal: it decides nothing.
    """

    publishing: bool = False
    pending: Mapping[str, Pending] = field(default_factory=_make_empty)
    policies: tuple[AppliedPolicy, ...] = ()
    newest_report_ns: int = 0
    settings: str = ""

    @property
    def policy_ids(self) -> frozenset[str]:
        """Ids of the applied policy updates; none is applied twice."""
        return frozenset(policy.policy_id for policy in self.policies)


class Ledger:
    """Mutable facts into which records are folded, each in constant time.

    Args:
      facts: the facts to start from.
    """

    def __init__(self, facts: Facts) -> None:
        self._pending = dict(facts.pending)
        self._latest = facts
        self._changed = False

    @property
    def facts(self) -> Facts:
        """The facts after the last record; immutable, safe to keep."""
        if self._changed:
            pending = MappingProxyType(dict(self._pending))
            self._latest, self._changed = replace(self._latest, pending=pending), False
        return self._latest

    @property
    def newest_report_ns(self) -> int:
        """See `Facts.newest_report_ns`."""
        return self._latest.newest_report_ns

    @property
    def first_pending(self) -> int | None:
        """The lowest sequence that holds a pending report."""
        # Reports are inserted in the order of their records; a retry keeps their place.
        return next((pending.sequence for pending in self._pending.values()), None)

    def require_pending(self, report_id: str) -> None:
        """Check that a report is pending.

        Raises:
          PersistenceError: it is not.
        """
        if report_id not in self._pending:
            raise PersistenceError(
                f"report {report_id!r} is not pending: it was acknowledged or dropped before, or"
                " the directory was opened without publishing=True",
                report_id=report_id,
            )

    def connect(self, publishing: bool) -> None:
        """Set whether there is a bus; without a bus no report is pending."""
        self._latest = replace(self.facts, publishing=publishing)
        if not publishing and self._pending:
            self._pending.clear()
            self._changed = True

    def set_settings(self, settings: str) -> None:
        """Set the controller's configuration, JSON text."""
        self._latest = replace(self.facts, settings=settings)

    def add_reports(self, sequence: int, reports: Iterable[FieldReport]) -> None:
        """Fold in the reports of a STEP record."""
        newest = self._latest.newest_report_ns
        for report in reports:
            newest = max(newest, report.issued_at_ns or 0)
            if self._latest.publishing:
                self._pending[report.report_id] = Pending(sequence, 0, 0, report)
                self._changed = True
        if newest != self._latest.newest_report_ns:
            self._latest = replace(self._latest, newest_report_ns=newest)

    def settle(self, report_id: str) -> None:
        """Fold in an ACK or a DROP."""
        self._changed |= self._pending.pop(report_id, None) is not None

    def reschedule(self, report_id: str, attempts: int, not_before_ns: int) -> None:
        """Fold in a RETRY."""
        held = self._pending.get(report_id)
        if held is not None:
            scheduled = replace(held, attempts=attempts, not_before_ns=not_before_ns)
            self._pending[report_id] = scheduled
            self._changed = True

    def add_policy(self, policy: AppliedPolicy) -> None:
        """Fold in a POLICY_UPDATE."""
        self._latest = replace(self._latest, policies=(*self._latest.policies, policy))
