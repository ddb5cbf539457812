"""Facts about the world that no restore rewinds: what was published, which policies applied.

Everything that decides is in `TamiyoState`, and a restore takes that back to an earlier one.
That a bus has taken a report, or that a policy was applied once, stays true all the same.
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
    """A report that the bus has not taken yet.

    Attributes:
      sequence: the STEP record that holds it.
      attempts: how often publishing it has failed.
      not_before_ns: when to try next, nanoseconds since the epoch; 0 is at once.
      report: the report.
    """

    sequence: int
    attempts: int
    not_before_ns: int
    report: FieldReport


def _nothing() -> Mapping[str, Pending]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of the world after a record.

    Attributes:
      publishing: whether reports have a bus to go to; without one none is ever pending.
      pending: reports that the bus has not taken yet, by id, oldest first.
      policies: the policy updates that were applied, in that order.
      newest_report_ns: the latest time of issue among all reports so far; 0 before the first.
    """

    publishing: bool = False
    pending: Mapping[str, Pending] = field(default_factory=_nothing)
    policies: tuple[AppliedPolicy, ...] = ()
    newest_report_ns: int = 0

    @property
    def policy_ids(self) -> frozenset[str]:
        """Ids of the policies that were applied; none is applied twice."""
        return frozenset(policy.policy_id for policy in self.policies)


class Ledger:
    """Facts while records are folded into them, each at the same cost however many pend.

    Args:
      facts: what to go on from.
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
        # Reports enter in the order of their records, and a retry leaves them in their place.
        return next((one.sequence for one in self._pending.values()), None)

    def require_pending(self, report_id: str) -> None:
        """Check that something may still become of a report.

        Raises:
          PersistenceError: it is not pending.
        """
        if report_id not in self._pending:
            raise PersistenceError(
                f"report {report_id!r} is not pending: it was acknowledged or dropped before, or"
                " the directory was opened without publishing=True",
                report_id=report_id,
            )

    def connect(self, publishing: bool) -> None:
        """Say whether there is a bus; without one nothing is pending."""
        self._latest = replace(self.facts, publishing=publishing)
        if not publishing and self._pending:
            self._pending.clear()
            self._changed = True

    def reported(self, sequence: int, reports: Iterable[FieldReport]) -> None:
        """Fold in the reports of a STEP record."""
        newest = self._latest.newest_report_ns
        for report in reports:
            newest = max(newest, report.issued_at_ns or 0)
            if self._latest.publishing:
                self._pending[report.report_id] = Pending(sequence, 0, 0, report)
                self._changed = True
        if newest != self._latest.newest_report_ns:
            self._latest = replace(self._latest, newest_report_ns=newest)

    def settled(self, report_id: str) -> None:
        """Fold in an ACK or a DROP."""
        self._changed |= self._pending.pop(report_id, None) is not None

    def retried(self, report_id: str, attempts: int, not_before_ns: int) -> None:
        """Fold in a RETRY."""
        held = self._pending.get(report_id)
        if held is not None:
            scheduled = replace(held, attempts=attempts, not_before_ns=not_before_ns)
            self._pending[report_id] = scheduled
            self._changed = True

    def applied(self, policy: AppliedPolicy) -> None:
        """Fold in a POLICY_UPDATE."""
        self._latest = replace(self._latest, policies=(*self._latest.policies, policy))
