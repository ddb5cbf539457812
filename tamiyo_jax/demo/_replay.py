"""Train the demonstration's network again by the decisions in its journal."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import SecurityConfig
from tamiyo_jax.contracts import NonceLedger, Secret, Verifier
from tamiyo_jax.demo._digits import digits_task
from tamiyo_jax.demo._results import Row
from tamiyo_jax.demo._run import row_of
from tamiyo_jax.demo._settings import RESULT, read_result
from tamiyo_jax.errors import PersistenceError, ReplayDivergedError
from tamiyo_jax.host import CommandApplier, HostCheckpoints, save_tree
from tamiyo_jax.replay import Replay, ReplayedDecision
from tamiyo_jax.training import LoopState, Record, init_loop, run

__all__ = ["DemoReplay", "replay_demo"]


@dataclass(frozen=True, slots=True)
class DemoReplay:
    """The result of a replay, beside the recorded run.

    Attributes:
      decisions: number of decisions applied.
      differing: names of packet fields that differ from the journal, by epoch.
      unused: number of recorded decisions that no packet asked for.
      test_accuracy: test accuracy at the end, in [0, 1].
      recorded_accuracy: test accuracy of the recorded run, in [0, 1].
    """

    decisions: int
    differing: dict[int, tuple[str, ...]]
    unused: int
    test_accuracy: float
    recorded_accuracy: float

    @property
    def identical(self) -> bool:
        """Whether all packets and the accuracy are identical, bit for bit."""
        same = self.test_accuracy == self.recorded_accuracy
        return same and not self.differing and not self.unused


def replay_demo(
    directory: Path, keep: Path | None, on_row: Callable[[Row, int], None]
) -> DemoReplay:
    """Train the same network again, with the decisions of the journal.

    Args:
      directory: the run directory of a demonstration; only read.
      keep: directory for the grown network, the Orbax checkpoint ``loop``; None keeps nothing.
      on_row: called with each epoch and the number of epochs.

    Raises:
      PersistenceError: there is no finished demonstration, its journal cannot be replayed, or
        `keep` already holds a network.
      ReplayDivergedError: the run has diverged from its journal.
    """
    result = directory / RESULT
    if not result.is_file():
        raise PersistenceError(
            f"{directory} holds no finished demonstration; run tamiyo-jax demo. "
            "Replay another loop with tamiyo_jax.replay.Replay",
            path=str(result),
        )
    ended = read_result(directory)
    steps, accuracy = ended.steps, ended.test_accuracy
    if steps is None or accuracy is None:
        raise PersistenceError(
            f"the demonstration in {directory} has not finished; continue it with "
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
        checkpoints = HostCheckpoints(scratch, task.host)
        ledger = NonceLedger(steady_time_ns())
        verifier = Verifier((Secret(secret),), ledger, SecurityConfig())
        outcome = run(
            task,
            replay,
            steps=steps,
            state=init_loop(task, ended.seed),
            run_id=f"replay-of-digits-{ended.seed}",
            compile_ahead=False,
            applier=CommandApplier(
                verifier,
                clock=steady_time_ns,
                optimizer_id=task.optimizer_id,
                checkpointer=checkpoints,
                host=task.host,
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
