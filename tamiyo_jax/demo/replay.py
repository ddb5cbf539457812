"""Growing the demonstration's network once more, by the decisions on record."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tamiyo_jax.config import SecurityConfig
from tamiyo_jax.contracts import NonceLedger, Secret, Verifier
from tamiyo_jax.demo.begun import RESULT, read_result
from tamiyo_jax.demo.run import Row, row_of
from tamiyo_jax.digits import digits_task
from tamiyo_jax.errors import PersistenceError, ReplayDivergedError
from tamiyo_jax.host import CommandApplier, HostCheckpoints, save_tree
from tamiyo_jax.loop import LoopState, Record, init_loop, run
from tamiyo_jax.runtime.replay import Replay, ReplayedDecision

__all__ = ["DemoReplay", "replay_demo"]


@dataclass(frozen=True, slots=True)
class DemoReplay:
    """How a replay went, beside what is on record.

    Attributes:
      decisions: how many were handed out and applied.
      differing: fields of packets that were not what they are on record, by epoch.
      unused: decisions on record that no packet asked for.
      test_accuracy: of the network at the end, in [0, 1].
      recorded_accuracy: of the network on record.
    """

    decisions: int
    differing: dict[int, tuple[str, ...]]
    unused: int
    test_accuracy: float
    recorded_accuracy: float

    @property
    def identical(self) -> bool:
        """Whether the run went the same way bit for bit, to the same accuracy."""
        same = self.test_accuracy == self.recorded_accuracy
        return same and not self.differing and not self.unused


def replay_demo(
    directory: Path, keep: Path | None, on_row: Callable[[Row, int], None]
) -> DemoReplay:
    """Train the same network again, and let the journal decide.

    Args:
      directory: what a demonstration left behind; only read.
      keep: where the grown network goes, as the Orbax checkpoint ``loop``; None keeps nothing.
      on_row: told each epoch, and how many there are.

    Raises:
      PersistenceError: there is no demonstration that came to its end, its journal cannot be
        replayed, or `keep` holds a network already.
      ReplayDivergedError: the run came to another place than the one on record.
    """
    result = directory / RESULT
    if not result.is_file():
        raise PersistenceError(
            f"{directory} holds no demonstration that came to its end; make one with tamiyo-jax "
            "demo. Replay another loop with tamiyo_jax.runtime.Replay",
            path=str(result),
        )
    ended = read_result(directory)
    steps, accuracy = ended.steps, ended.test_accuracy
    if steps is None or accuracy is None:
        raise PersistenceError(
            f"the demonstration in {directory} has not come to its end; go on with it by "
            "tamiyo-jax demo --resume",
            path=str(result),
        )
    secret = os.urandom(32)
    replay = Replay.open(directory / "tamiyo", secret=secret)
    task = digits_task(ended.seed)
    differing: dict[int, tuple[str, ...]] = {}

    def watch(record: Record, _: LoopState) -> None:
        if isinstance(record.error, ReplayDivergedError):
            raise record.error
        decision = record.decision
        if isinstance(decision, ReplayedDecision) and decision.differences:
            differing[record.packet.current_epoch] = decision.differences
        on_row(row_of(record), steps // task.steps_per_epoch)

    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = HostCheckpoints(scratch)
        ledger = NonceLedger(time.time_ns())
        verifier = Verifier((Secret(secret),), ledger, SecurityConfig())
        outcome = run(
            task,
            replay,
            steps=steps,
            state=init_loop(task, ended.seed),
            run_id=f"replay-of-digits-{ended.seed}",
            applier=CommandApplier(
                verifier,
                clock=time.time_ns,
                optimizer_id=task.optimizer_id,
                checkpointer=checkpoints,
            ),
            checkpoints=checkpoints,
            on_step=watch,
        )
    if keep is not None:
        save_tree(keep / "loop", outcome.state)
    return DemoReplay(
        decisions=sum(record.decision is not None for record in outcome.history),
        differing=differing,
        unused=replay.remaining,
        test_accuracy=outcome.test_accuracy,
        recorded_accuracy=accuracy,
    )
