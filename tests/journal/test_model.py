"""Whatever is recorded, in whatever order, through crashes and retention: the model agrees."""

from __future__ import annotations

import copy
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from journal.campaign import (
    EPOCH,
    POLICY_STATE,
    SECOND,
    Clock,
    Summary,
    make_report,
    make_step,
    make_storage_config,
    stepped,
    summarise,
)
from journal.simulation import SURVIVALS, Disk, SimulatedFileSystem, Survival, Surviving

from tamiyo_jax.controller import initial_state, state_to_json
from tamiyo_jax.journal import Ticket
from tamiyo_jax.storage import StorageManager

NAMES = st.integers(0, 10**9)


@dataclass
class Model:
    """What a run directory should say: plain values, changed by plain rules."""

    state: object = field(default_factory=lambda: initial_state(POLICY_STATE))
    pending: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    policies: frozenset[str] = frozenset()

    def summary(self) -> Summary:
        pending = tuple((name, *rest) for name, rest in self.pending.items())
        return state_to_json(self.state), pending, self.policies  # pyright: ignore


class RunDirectory(RuleBasedStateMachine):
    """A manager and its model; `past` holds the model after each record."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self.clock, self.model, self.past = Clock(), Model(), dict[int, Model]()
        self.durable, self.count = 0, 0

    @initialize(seed=st.integers(0, 1000), durability=st.sampled_from(["group", "always"]))
    def begin(self, seed: int, durability: str) -> None:
        self.salts = random.Random(seed)
        self.config = make_storage_config(durability=durability)
        self._open(Disk())

    def _open(self, disk: Disk) -> None:
        self.files = SimulatedFileSystem(disk)
        self.manager = StorageManager.open(
            Path(self._directory.name),
            self.config,
            POLICY_STATE,
            clock=self.clock,
            publishing=True,
            files=self.files,
            salt_source=self.salts.randbytes,
        )
        last = self.manager.last_sequence
        assert last >= self.durable, "acknowledged records lost"
        assert self.manager.recovered.corrupt == ()
        if last:
            known = max(sequence for sequence in self.past if sequence <= last)
            self.model = copy.deepcopy(self.past[known])
        else:
            self.model = Model()
        self.past = {sequence: m for sequence, m in self.past.items() if sequence <= last}
        state = self.manager.state or initial_state(POLICY_STATE)
        self.manager.start(state)
        self.past[last + 1] = copy.deepcopy(self.model)
        self.durable = self.manager.last_sequence
        # The first sync of a session happens by itself; after it they happen when asked for.
        self._record(self.manager.append_operator("opened", "", state)).wait()
        self.durable = self.manager.last_sequence

    def _record(self, ticket: Ticket) -> Ticket:
        self.past[ticket.sequence] = copy.deepcopy(self.model)
        if ticket.done:
            self.durable = max(self.durable, ticket.sequence)
        return ticket

    @rule(windows=st.integers(0, 2), size=st.integers(0, 2000), wait=st.booleans())
    def step(self, windows: int, size: int, wait: bool) -> None:
        self.count += 1
        state = stepped(self.manager.state)  # pyright: ignore
        names = [f"{self.count}-{n}-{'x' * size}" for n in range(1 + windows)]
        reports = [make_report(name, self.clock()) for name in names]
        ticket = self.manager.append_step(make_step(state, *reports), state)
        self.model.state = state
        self.model.pending |= {name: (ticket.sequence, 0, 0) for name in names}
        self._record(ticket)
        if wait:
            ticket.wait()
            self.durable = ticket.sequence

    @precondition(lambda self: self.model.pending)
    @rule(pick=NAMES, verdict=st.sampled_from(["acknowledge", "drop"]))
    def settle(self, pick: int, verdict: str) -> None:
        name = list(self.model.pending)[pick % len(self.model.pending)]
        ticket = getattr(self.manager, verdict)(name)
        del self.model.pending[name]
        self._record(ticket)

    @precondition(lambda self: self.model.pending)
    @rule(pick=NAMES, attempts=st.integers(1, 5))
    def retry(self, pick: int, attempts: int) -> None:
        name = list(self.model.pending)[pick % len(self.model.pending)]
        ticket = self.manager.retry(name, attempts, EPOCH + pick)
        self.model.pending[name] = (self.model.pending[name][0], attempts, EPOCH + pick)
        self._record(ticket)

    @rule()
    def restore(self) -> None:
        self.model.state = initial_state(POLICY_STATE)
        ticket = self.manager.append_restore(initial_state(POLICY_STATE), "a checkpoint")
        self._record(ticket)

    @rule()
    def apply_policy(self) -> None:
        self.count += 1
        name = f"policy-{self.count}"
        digest = self.manager.store_parameters(name.encode())
        ticket = self.manager.append_policy_update(
            name,
            digest,
            "v2",
            self.manager.state,  # pyright: ignore
        )
        self.model.policies |= {name}
        self._record(ticket)

    @rule(seconds=st.integers(1, 30))
    def wait_a_while(self, seconds: int) -> None:
        self.clock.now_ns += seconds * SECOND

    @rule()
    def compact(self) -> None:
        self.manager.compact()
        self.past[self.manager.last_sequence] = copy.deepcopy(self.model)
        self.durable = self.manager.last_sequence

    @rule()
    def reopen(self) -> None:
        self.manager.close()
        self.durable = self.manager.last_sequence
        self._open(self.files.image())

    @rule(survival=st.sampled_from(SURVIVALS[:3]), chance=st.randoms(use_true_random=False))
    def lose_power(self, survival: Survival, chance: random.Random) -> None:
        surviving = Surviving(self.files)
        for operation in self.files.trace:
            surviving.perform(operation)
        disk = surviving.disk(survival, chance)
        self.manager.close()
        self._open(disk)

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "manager"):
            assert summarise(self.manager) == self.model.summary()
            for policy in self.manager.facts.policies:
                assert self.manager.load_parameters(policy.digest) == policy.policy_id.encode()

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            self.manager.close()
        self._directory.cleanup()


TestRunDirectory = RunDirectory.TestCase
TestRunDirectory.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
