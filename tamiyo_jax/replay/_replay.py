"""Replay the recorded decisions of one run in another.

A run with the same seed is the same bit for bit. A run with other numbers can follow too, while
it has the same epochs, blueprints and seed stages: then a schedule that worked is applied to other
data. Differences are reported with every decision; a decision that does not fit raises an error.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self, cast

from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.contracts import (
    SIGNATURE,
    AdaptationCommand,
    OptimizerAdjustment,
    Rollback,
    Secret,
    SeedAdjustment,
    SystemStatePacket,
    decode_packet,
    encode_packet,
    sign,
)
from tamiyo_jax.errors import ReplayDivergedError, TamiyoError
from tamiyo_jax.replay._history import read_history
from tamiyo_jax.risk import is_restorable
from tamiyo_jax.storage import StepRecord

__all__ = ["REPLAY_OF", "Replay", "ReplayedDecision", "packet_differences"]

REPLAY_OF = "replay_of"
"""Annotation of a replayed command: the id of the command on record."""

# Every run has these of its own: names, times, and what a clock measured.
_OWN = frozenset(
    {
        *("packet_id", "training_run_id", "experiment_name", "source_subsystem", "timestamp_ns"),
        *("training_metrics.samples_per_s", "training_metrics.hook_latency_ms"),
        *("training_metrics.cpu_util_percent", "training_metrics.gpu_util_percent"),
        "training_metrics.gpu_mem_free_gb",
    }
)


@dataclass(frozen=True, slots=True)
class ReplayedDecision:
    """A recorded decision, renewed for the run that asks for it.

    Attributes:
      decision_id: the command's id; that of the report on record where there is no command.
      action: what was decided.
      command: what the host is to do; None for WAIT. Under an id of its own, issued now, and
        signed unless `shadow`; its annotation ``replay_of`` names the command on record.
      reason: id of the rule that decided.
      explanation: the reason in words; empty in journals that have none.
      shadow: on record it was only what would have been done.
      differences: fields of the packet that are not what they were on record; none where the
        run goes the same way.
    """

    decision_id: str
    action: str
    command: AdaptationCommand | None
    reason: str
    explanation: str
    shadow: bool
    differences: tuple[str, ...]


class Replay:
    """Answers packets with the decisions of a journal, one after another.

    Stands where a `Tamiyo` would in a training loop. It has no policy, and writes nothing.

    Args:
      steps: the steps on record, in order.
      secret: signs the commands.
      clock: nanoseconds since the epoch.
    """

    def __init__(
        self, steps: Sequence[StepRecord], *, secret: Secret, clock: Callable[[], int]
    ) -> None:
        self._steps = tuple(steps)
        self._secret = secret
        self._clock = clock
        self._next = 0

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        *,
        secret: bytes,
        clock: Callable[[], int] = steady_time_ns,
    ) -> Self:
        """Read the journal of a run directory, which may be in use.

        Args:
          directory: the run directory.
          secret: of the new run, at least 16 bytes; what its applier verifies with.
          clock: nanoseconds since the epoch.

        Raises:
          MissingSecretError: the secret is too short.
          PersistenceError: there is no journal, it is incomplete, or it holds no packets.
        """
        signing = Secret(secret)
        signing.check_strength()
        steps = [event for event in read_history(directory) if isinstance(event, StepRecord)]
        return cls(steps, secret=signing, clock=clock)

    @property
    def remaining(self) -> int:
        """Steps on record that were not asked for yet."""
        return len(self._steps) - self._next

    def step(self, packet: SystemStatePacket) -> ReplayedDecision:
        """Return the decision of the next recorded step.

        Each call takes the next step on record, also where it raises.

        Raises:
          ReplayDivergedError: the run is at another place, the command names what the packet
            does not offer, or the journal is over.
          TamiyoError: the step on record failed; what it raised is in the message. Train on
            without Tamiyo, as was done then.
        """
        if not self.remaining:
            raise ReplayDivergedError(
                f"the journal ends after {len(self._steps)} steps; packet {packet.packet_id} is "
                "beyond them",
                packet_id=packet.packet_id,
                differences=(),
            )
        record = self._steps[self._next]
        self._next += 1
        if not record.action or record.packet is None:
            raise TamiyoError(f"this step failed on record: {record.report.notes}")
        if problems := _find_misfits(record.packet, record.command, packet):
            raise ReplayDivergedError(
                f"packet {packet.packet_id} is not where step {self._next} of the journal was: "
                + "; ".join(problems),
                packet_id=packet.packet_id,
                differences=problems,
            )
        shadow = record.mode == "shadow"
        command = None if record.command is None else self._renew(record.command, shadow)
        return ReplayedDecision(
            decision_id=record.report.report_id if command is None else command.command_id,
            action=record.action,
            command=command,
            reason=record.report.notes,
            explanation=record.explanation,
            shadow=shadow,
            differences=packet_differences(record.packet, packet),
        )

    def _renew(self, recorded: AdaptationCommand, shadow: bool) -> AdaptationCommand:
        annotations = {k: v for k, v in recorded.annotations.items() if k != SIGNATURE}
        command = replace(
            recorded,
            command_id=str(uuid.uuid4()),
            issued_at_ns=self._clock(),
            annotations={**annotations, REPLAY_OF: recorded.command_id},
        )
        return command if shadow else sign(command, self._secret)


def packet_differences(recorded: SystemStatePacket, packet: SystemStatePacket) -> tuple[str, ...]:
    """Fields in which a packet differs from one on record, by name.

    Compared as the wire has them, with numbers in f32. Names, times, the device, and what a
    clock measured are every run's own.
    """
    before = _leaves(recorded)
    after = _leaves(decode_packet(encode_packet(packet)))
    return tuple(
        name
        for name in sorted(before.keys() | after.keys())
        if name not in before or name not in after or not _same(before[name], after[name])
    )


def _find_misfits(
    recorded: SystemStatePacket, command: AdaptationCommand | None, packet: SystemStatePacket
) -> tuple[str, ...]:
    """Why a decision upon `recorded` cannot be the answer to `packet`."""
    found = [
        f"{name} is {getattr(packet, name)}, on record {getattr(recorded, name)}"
        for name in ("blueprint_id", "current_epoch", "global_step")
        if getattr(packet, name) != getattr(recorded, name)
    ]
    stages = {seed.seed_id: seed.stage.name for seed in packet.seeds}
    then = {seed.seed_id: seed.stage.name for seed in recorded.seeds}
    found += [
        f"seed {seed} is {stages.get(seed, 'absent')}, on record {then.get(seed, 'absent')}"
        for seed in sorted(stages.keys() | then.keys())
        if stages.get(seed) != then.get(seed)
    ]
    match None if command is None else command.payload:
        case SeedAdjustment(blueprint_id=str(grown)) if grown not in packet.candidates:
            found.append(f"blueprint {grown} is no candidate")
        case OptimizerAdjustment(optimizer_id=adjusted) if adjusted != packet.optimizer_id:
            found.append(f"optimizer_id is {packet.optimizer_id}, on record {adjusted}")
        case Rollback(checkpoint) if not is_restorable(packet, checkpoint):
            offered = packet.restorable_checkpoint
            found.append(f"restorable_checkpoint is {offered}, on record {checkpoint}")
        case _:
            pass
    return tuple(found)


def _leaves(packet: SystemStatePacket) -> dict[str, object]:
    """Values of a packet by their names, without those that every run has of its own."""
    values = asdict(replace(packet, hardware=None))
    return {name: value for name, value in _flat("", values) if name not in _OWN}


def _flat(path: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, part in cast(Mapping[str, object], value).items():
            yield from _flat(f"{path}.{name}" if path else name, part)
    elif isinstance(value, tuple):
        for index, part in enumerate(cast(tuple[object, ...], value)):
            yield from _flat(f"{path}[{index}]", part)
    else:
        yield path, value


def _same(old: object, new: object) -> bool:
    if isinstance(old, float) and isinstance(new, float):
        return old == new or (math.isnan(old) and math.isnan(new))
    return old == new
