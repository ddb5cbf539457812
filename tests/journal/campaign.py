"""Crash campaigns: workloads over a simulated file system, checked at every crash point."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from journal.simulation import SURVIVALS, Disk, SimulatedFileSystem, Surviving

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.contracts import FieldReport, ReportOutcome
from tamiyo_jax.controller import TamiyoState, initial_state, state_to_json
from tamiyo_jax.journal import Record, Recovered, Ticket, read_journal
from tamiyo_jax.journal._scanning import read_segment
from tamiyo_jax.storage import StepRecord, StorageManager

SECOND = 1_000_000_000
EPOCH = 1_700_000_000 * SECOND
RETENTION_HOURS = 20 / 3600
POLICY_STATE = np.zeros(2, np.float32)

State = TamiyoState[np.ndarray]
Summary = tuple[str, tuple[tuple[str, int, int, int], ...], frozenset[str]]


def make_storage_config(**fields: object) -> StorageConfig:
    """Settings under which nothing is synced until a caller waits for it."""
    defaults: dict[str, object] = {
        "flush_ms": 3_600_000.0,
        "segment_bytes": 4096,
        "retention_hours": RETENTION_HOURS,
    }
    # Segments so small are of no use elsewhere, so the configuration refuses them.
    return StorageConfig().model_copy(update=defaults | fields)


def make_report(report_id: str, issued_at_ns: int | None) -> FieldReport:
    return FieldReport(
        report_id=report_id,
        command_id="",
        training_run_id="run",
        seed_id="",
        blueprint_id="host",
        outcome=ReportOutcome.NEUTRAL,
        issued_at_ns=issued_at_ns,
    )


def make_step(state: State, *reports: FieldReport) -> StepRecord:
    own, *windows = reports
    text = state_to_json(state, registries=False)
    return StepRecord(own, "WAIT", "act", text, closed_windows=tuple(windows))


def stepped(state: State) -> State:
    """A state that differs from `state` in what a step changes."""
    grown = (state.policy_state * np.float32(0.9) + np.float32(1)).astype(np.float32)
    return replace(state, steps=state.steps + 1, policy_state=grown)


def summarise(manager: StorageManager[np.ndarray]) -> Summary:
    """All that a reopening has to give back."""
    assert manager.state is not None
    pending = tuple(
        (report_id, pending.sequence, pending.attempts, pending.not_before_ns)
        for report_id, pending in manager.facts.pending.items()
        if pending.report.report_id == report_id
    )
    return state_to_json(manager.state), pending, manager.facts.policy_ids


class Clock:
    def __init__(self, now_ns: int = EPOCH) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


@dataclass(frozen=True)
class Note:
    """What had been promised when the trace was `length` long."""

    length: int
    durable: int
    now_ns: int
    pending: frozenset[int]


@dataclass
class Journey:
    """A workload that ran to its end, and what it promised on its way.

    Attributes:
      files: with the trace of it.
      history: every record that was ever written, by sequence.
      expected: state and facts after a record; those after others are as after the one before.
      reports: for each sequence, the time of issue of its newest report.
      notes: the promises, by ascending length of the trace.
      missing: sequences that were lost before, and are known to be.
    """

    files: SimulatedFileSystem
    config: StorageConfig
    history: dict[int, Record] = field(default_factory=dict)
    expected: dict[int, Summary] = field(default_factory=dict)
    reports: dict[int, int] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    missing: frozenset[int] = frozenset()
    damaged: tuple[bytes, ...] = ()

    def note(self, manager: StorageManager[np.ndarray], durable: int, now_ns: int) -> None:
        pending = frozenset(pending.sequence for pending in manager.facts.pending.values())
        self.notes.append(Note(len(self.files.trace), durable, now_ns, pending))

    def learn_history(self) -> None:
        """Collect the records from all that was ever written to the files of the trace."""
        names = {}
        for operation in self.files.trace:
            target = getattr(operation, "target", None)
            if target is not None and target.suffix == ".wal":
                names[operation.inode] = target.name
        for inode, name in names.items():
            for record in read_segment(name, bytes(inode.data)).scan.records:
                self.history[record.sequence] = record

    def state_after(self, sequence: int) -> Summary:
        return self.expected[max(known for known in self.expected if known <= sequence)]


class Session:
    """One opening of a directory in a journey."""

    def __init__(
        self, directory: Path, journey: Journey, clock: Clock, chance: random.Random
    ) -> None:
        self.journey, self.clock, self.chance = journey, clock, chance
        self.manager = StorageManager.open(
            directory,
            journey.config,
            POLICY_STATE,
            clock=clock,
            publishing=True,
            files=journey.files,
            salt_source=chance.randbytes,
        )
        self.durable = 0

    def start(self) -> None:
        base = self.manager.last_sequence + 1
        self.manager.start(self.manager.state or initial_state(POLICY_STATE))
        self.journey.expected[base] = summarise(self.manager)
        self.durable = self.manager.last_sequence
        self.journey.note(self.manager, self.durable, self.clock())

    def settle(self, ticket: Ticket, wait: bool) -> None:
        self.journey.expected[ticket.sequence] = summarise(self.manager)
        if wait:
            ticket.wait()
        if ticket.done:
            self.durable = max(self.durable, ticket.sequence)
        self.journey.note(self.manager, self.durable, self.clock())

    def step(self, name: str, *, windows: int = 0) -> Ticket:
        """A step whose report is new, and windows whose reports are as old as they may be."""
        assert self.manager.state is not None
        after = stepped(self.manager.state)
        now = self.clock()
        reports = [make_report(f"{name}-{n}", now - n * SECOND) for n in range(1 + windows)]
        ticket = self.manager.append_step(make_step(after, *reports), after)
        self.journey.reports[ticket.sequence] = now
        return ticket

    def anything(self, name: str) -> Ticket:
        """One of all the things that can be recorded."""
        manager, chance = self.manager, self.chance
        pending = list(manager.facts.pending)
        assert manager.state is not None
        kind = chance.random()
        if kind < 0.02:
            return manager.append_restore(initial_state(POLICY_STATE), name)
        if kind < 0.04:
            return manager.append_operator("conservative_on", name, stepped(manager.state))
        if kind < 0.06:
            digest = manager.store_parameters(name.encode() * 9)
            return manager.append_policy_update(name, digest, "v2", manager.state)
        if pending and kind < 0.12:
            return manager.retry(pending[0], 1 + int(kind * 100), self.clock() + SECOND)
        if pending and kind < 0.16:
            return manager.drop(pending[0])
        if pending and kind < 0.55:
            return manager.acknowledge(pending[0])
        return self.step(name, windows=chance.choice((0, 0, 0, 1, 2)))


def travel(
    directory: Path, seed: int, records: int, *, disk: Disk | None = None, now_ns: int = EPOCH
) -> Journey:
    """Run a workload of three sessions: rotation, retention, publishing, both durabilities."""
    chance = random.Random(seed)
    durability = ("group", "always")[seed % 2]
    config = make_storage_config(durability=durability)
    journey = Journey(SimulatedFileSystem(disk), config)
    clock = Clock(now_ns)
    group = chance.choice((1, 3, 10))
    for opening in range(3):
        session = Session(directory, journey, clock, chance)
        if opening == 0:
            _learn_damage(journey, session)
        session.start()
        for number in range(records // 3):
            clock.now_ns += chance.randint(0, SECOND)
            ticket = session.anything(f"{seed}-{opening}-{number}")
            # The first sync happens by itself; waiting for it gives the operations one order.
            session.settle(ticket, number == 0 or chance.randrange(group) == 0)
            if chance.random() < 0.01:
                session.manager.compact()
        session.manager.close()
        journey.note(session.manager, session.manager.last_sequence, clock())
    journey.learn_history()
    return journey


def _learn_damage(journey: Journey, session: Session) -> None:
    """Take for granted what a corrupted disk still had, and nothing else."""
    found = session.manager.recovered
    for record in found.records:
        journey.history[record.sequence] = record
    journey.missing = _lost(found)
    names = {getattr(damage, "segment", None) for damage in found.corrupt}
    journey.damaged = tuple(
        data for path, data in journey.files.disk.files.items() if path.name in names
    )
    if found.records:
        last = found.records[-1].sequence
        journey.expected[last] = summarise(session.manager)
        journey.notes.append(Note(0, last, session.clock(), frozenset()))


def _lost(found: Recovered) -> frozenset[int]:
    return frozenset(s for hole in found.missing for s in range(hole.first, hole.last + 1))


def corrupted(directory: Path, journey: Journey, seed: int) -> Disk:
    """The disk that a journey ended with, with one byte of a synced record flipped."""
    disk = journey.files.image()
    segments = sorted(path for path in disk.files if path.parent == directory / "journal")
    chance = random.Random(seed)
    path = segments[len(segments) // 2]
    data = bytearray(disk.files[path])
    data[chance.randrange(len(data) // 2, len(data) - 100)] ^= 0xFF
    return replace(disk, files=disk.files | {path: bytes(data)})


@dataclass
class Tally:
    """The figures of a campaign."""

    crash_points: int = 0
    reopenings: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def fail(self, kind: str, detail: object) -> None:
        self.failures[kind] += 1
        if len(self.examples) < 10:
            self.examples.append(f"{kind}: {detail}")


def crash_points(journey: Journey) -> Iterator[tuple[int, Surviving, Note, Note]]:
    """After every operation: its index, what may survive, the promises before and after."""
    surviving = Surviving(journey.files)
    nothing = Note(0, 0, 0, frozenset())
    upcoming = iter(journey.notes)
    before, after = nothing, next(upcoming)
    for index, operation in enumerate(journey.files.trace):
        while after.length <= index and (following := next(upcoming, None)) is not None:
            before, after = after, following
        surviving.perform(operation)
        reached = after if after.length <= index else before
        yield index, surviving, reached, after


def campaign(
    directory: Path,
    journey: Journey,
    tally: Tally,
    seed: int,
    *,
    depth: int = 1,
    every: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Crash a journey at every operation, with every kind of survival; `depth` levels deep.

    Args:
      directory: the run directory of the journey.
      journey: what to crash.
      tally: where to count.
      seed: of what survives.
      depth: at 1, some of the recoveries are crashed too.
      every: take only one crash point of so many.
      progress: called after each crash point.
    """
    chance = random.Random(seed)
    for index, surviving, before, after in crash_points(journey):
        if index % every:
            continue
        tally.crash_points += 1
        for survival in SURVIVALS:
            disk = surviving.disk(survival, chance)
            tally.reopenings += 1
            recovery = reopen(directory, journey, disk, before, after, tally, chance)
            if recovery is not None and depth and chance.random() < 0.005:
                campaign(directory, recovery, tally, seed + index, depth=depth - 1)
        progress()


def reopen(
    directory: Path,
    journey: Journey,
    disk: Disk,
    before: Note,
    after: Note,
    tally: Tally,
    chance: random.Random,
) -> Journey | None:
    """Reopen a disk, check everything that was promised, and go on; the recovery's journey."""
    recovery = Journey(SimulatedFileSystem(disk), journey.config)
    recovery.damaged = journey.damaged
    clock = Clock(after.now_ns or EPOCH)
    try:
        session = Session(directory, recovery, clock, chance)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure to reopen
        tally.fail("failed to reopen", repr(error))
        return None
    try:
        found = session.manager.recovered
        for problem in _problems(journey, session.manager, recovery.files.image(), before, after):
            tally.fail(*problem)
        recovery.history = {record.sequence: record for record in found.records}
        recovery.reports = {s: t for s, t in journey.reports.items() if s in recovery.history}
        recovery.missing = journey.missing | _lost(found)
        if found.records:
            recovery.expected[found.records[-1].sequence] = summarise(session.manager)
        pending = frozenset(pending.sequence for pending in session.manager.facts.pending.values())
        recovery.notes.append(Note(0, before.durable, clock(), pending))
        session.start()
        session.settle(session.step("after the crash"), wait=True)
        session.manager.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, appending did not go on
        session.manager.close()
        tally.fail("failed to go on", repr(error))
        return None
    recovery.note(session.manager, session.manager.last_sequence, clock())
    recovery.learn_history()
    again = read_journal(directory, recovery.files)
    if not again.clean or again.last_sequence != session.manager.last_sequence:
        tally.fail("unclean after recovery", again.corrupt or again.torn)
    return recovery


def _problems(
    journey: Journey,
    manager: StorageManager[np.ndarray],
    disk: Disk,
    before: Note,
    after: Note,
) -> Iterator[tuple[str, object]]:
    found = manager.recovered
    records = {record.sequence: record for record in found.records}
    last = max(records, default=0)
    if last < before.durable:
        yield "acknowledged record lost", (last, before.durable)
    for sequence, record in records.items():
        written = journey.history.get(sequence)
        if written is None or written[2:] != record[2:]:
            yield "record invented", sequence
    whole = set(range(min(records, default=1), last + 1)) - journey.missing
    holes = whole - set(records)
    if holes and min(holes) <= before.durable:
        yield "acknowledged record lost", ("hole", sorted(holes), before.durable)
    if found.corrupt and not journey.missing:
        yield "called corrupt", found.corrupt
    horizon = after.now_ns - int(RETENTION_HOURS * 3600 * SECOND)
    kept = {s for s, issued in journey.reports.items() if issued >= horizon}
    kept |= before.pending & after.pending
    gone = {s for s in kept if s <= before.durable} - set(records) - journey.missing
    if gone:
        yield "acknowledged record lost", ("retired too early", sorted(gone))
    if records and not holes and summarise(manager) != journey.state_after(last):
        yield "state differs", last
    for policy in manager.facts.policies:
        manager.load_parameters(policy.digest)
    if not set(disk.files.values()) >= set(journey.damaged):
        yield "corrupt bytes gone", len(journey.damaged)
