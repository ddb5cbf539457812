"""A controller for very many steps, with everything that occurs in a long run.

Real workers are killed and hung, policies updated and blueprints changed while it steps. What
it holds of the machine is sampled; `benchmarks/soak.py` checks a long run, a test a short one.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from making import SECRET, make_blueprint, make_packet, make_seed

from tamiyo_jax.config import PolicyConfig, TamiyoConfig
from tamiyo_jax.contracts import (
    LayerSpec,
    PolicyUpdate,
    Secret,
    SeedStage,
    SystemStatePacket,
    sign_update,
)
from tamiyo_jax.errors import DeadlineExceededError, PolicyFailureError, TamiyoError
from tamiyo_jax.graph import schema_digest
from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.policy import init_params, params_to_bytes
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.storage import decode_step
from tamiyo_jax.telemetry import JsonLinesSink, MemorySink
from tamiyo_jax.workers import WorkerPool

__all__ = ["Sample", "Soak", "running_packet", "soak"]

SAMPLES_PER_EVENT = 5
CHANGE_EVERY = 100  # steps between two changes of a blueprint
REMEMBERED = 2_000  # newest reports that must be on record at the end
RING = 500  # packets that the sink in memory keeps; it is full when the run is warm
HOSTS = {"host-a": 8, "host-b": 60}  # their layers; these two differ in layout
CANDIDATES = ("grow-a", "grow-b")  # of `make_packet`
STAGES = (SeedStage.DORMANT, SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.BLENDING)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_READY_S = 120.0


class Sample(NamedTuple):
    """What a soak holds of the machine, between two steps and with all workers warm.

    Attributes:
      step: steps so far.
      resident: bytes of the process.
      worker: the process that decides.
      worker_resident: its bytes.
      descriptors: open files of the process.
      threads: of the process.
      segments: files of the journal.
    """

    step: int
    resident: int
    worker: int
    worker_resident: int
    descriptors: int
    threads: int
    segments: int


@dataclass
class Soak:
    """What was seen of a soak.

    Attributes:
      latencies_ms: of every step, failed ones too.
      samples: in the order of the steps.
      events: what was done to the controller, and how often.
      expected: steps that had to fail, by error.
      surprises: steps that failed, or did not, against what was expected; and what is missing
        from the journal at the end.
      dropped: telemetry packets that sinks were too slow for.
    """

    latencies_ms: np.ndarray
    samples: list[Sample] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    surprises: Counter[str] = field(default_factory=Counter)
    dropped: int = 0


def soak(
    directory: Path,
    *,
    steps: int,
    policy: str = "graph",
    sample_every: int,
    retention_hours: float,
    progress: Callable[[Sample], object] = lambda _: None,
) -> Soak:
    """Step a controller, and make trouble for it after every fifth sample.

    Args:
      directory: of the run; made if it is not there.
      steps: how many.
      policy: ``"graph"``, in its small widths, or ``"heuristic"``, which has no updates.
      sample_every: steps between two samples.
      retention_hours: how long segments are kept.
      progress: called with every sample.
    """
    seen = Soak(np.full(steps, math.nan))  # written now, so that it does not grow later
    reports: deque[str] = deque(maxlen=REMEMBERED)
    with _open_source(directory, policy, retention_hours) as (tamiyo, library):
        events = _events(tamiyo, graph=policy == "graph")
        for step in range(steps):
            expected: type[TamiyoError] | None = None
            if step % sample_every == 0:
                seen.samples.append(_sample(step, tamiyo, directory))
                progress(seen.samples[-1])
                if step and step % (sample_every * SAMPLES_PER_EVENT) == 0:
                    name, event = next(events)
                    expected = event()
                    seen.events[name] += 1
            if step % CHANGE_EVERY == 0:
                _change(library, step // CHANGE_EVERY)
                seen.events["blueprint changed"] += 1
            packet = replace(running_packet(step), blueprint_id=_host(1 + step // CHANGE_EVERY))
            started = time.perf_counter()
            failure: TamiyoError | None = None
            try:
                reports.append(tamiyo.step(packet).report_id)
            except TamiyoError as error:
                failure = error
            seen.latencies_ms[step] = (time.perf_counter() - started) * 1e3
            if failure is not None and type(failure) is expected:
                seen.expected[expected.__name__] += 1
            elif failure is not None or expected is not None:
                seen.surprises[f"step {step}: {failure!r} instead of {expected}"] += 1
        seen.samples.append(_sample(steps, tamiyo, directory))
        seen.dropped = tamiyo._parts.telemetry.dropped
    for problem in _missing(directory / "run", list(reports)):
        seen.surprises[problem] += 1
    return seen


def _missing(directory: Path, reports: list[str]) -> Iterator[str]:
    """What the journal lacks of the newest reports, in their order."""
    found = read_journal(directory)
    if found.corrupt:
        yield f"{len(found.corrupt)} corrupt ranges in the journal"
    steps = [
        decode_step(record.payload) for record in found.records if record.type is RecordType.STEP
    ]
    recorded = [step.report.report_id for step in steps if step.action]
    if recorded[-len(reports) :] != reports:
        yield f"the newest {len(reports)} reports are not those on record"


@contextmanager
def _open_source(
    directory: Path, policy: str, retention_hours: float
) -> Iterator[tuple[Tamiyo, SqliteBlueprintLibrary]]:
    config = TamiyoConfig(
        policy=PolicyConfig.small(),
        deadlines={"inference_ms": 1_000.0, "metadata_ms": 1_000.0},  # of a busy machine
        storage={"retention_hours": retention_hours, "segment_bytes": 1 << 20},
    )
    library = SqliteBlueprintLibrary(directory / "blueprints.db")
    for number in range(len(HOSTS)):
        _change(library, number)
    for name in CANDIDATES:
        library.put(make_blueprint(name))
    with Tamiyo.open(
        config,
        directory=directory / "run",
        library=library,
        params=_params(0) if policy == "graph" else None,
        policy=policy,
        secret=SECRET,
        sinks=(MemorySink(RING), JsonLinesSink(directory / "telemetry.jsonl")),
    ) as tamiyo:
        _prepare(tamiyo)
        yield tamiyo, library


def _events(
    tamiyo: Tamiyo, *, graph: bool
) -> Iterator[tuple[str, Callable[[], type[TamiyoError] | None]]]:
    """What is done between two steps, in turn; an event returns how the next step must fail."""
    numbers = itertools.count(1)

    def idle(pool: WorkerPool) -> None:
        """The active worker is gone before it is asked again, so the spare answers."""
        pid = pool.pids()[0]
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # the pool reaps it

    def at_work() -> type[TamiyoError]:
        """It is stopped, so that it certainly has the question when it is killed."""
        pid = _inference(tamiyo).pids()[0]
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
        return PolicyFailureError

    def hung() -> type[TamiyoError]:
        os.kill(_inference(tamiyo).pids()[0], signal.SIGSTOP)
        return DeadlineExceededError

    def update() -> None:
        number = next(numbers)
        tamiyo.update_policy(_update(number, _params(number % 2)))
        _prepare(tamiyo)

    cycle = {
        "idle worker killed": lambda: idle(_inference(tamiyo)),
        "worker killed at work": at_work,
        **({"policy updated": update} if graph else {}),
        "worker hung": hung,
        "metadata worker killed": lambda: idle(_metadata(tamiyo)),
    }
    return itertools.cycle(cycle.items())


def _prepare(tamiyo: Tamiyo) -> None:
    for host in HOSTS:
        tamiyo.prepare(host)


def _change(library: SqliteBlueprintLibrary, number: int) -> None:
    """Put the next version of one of the hosts, of another size and risk but the same layout."""
    host = _host(number)
    layers = tuple(
        LayerSpec(f"L{i}", "dense", i, activation="relu", parameter_count=100)
        for i in range(HOSTS[host] - number // len(HOSTS) % 3)
    )
    library.put(make_blueprint(host, layers=layers, risk=0.1 + 0.1 * (number % 5)))


def _host(number: int) -> str:
    return tuple(HOSTS)[number % len(HOSTS)]


def running_packet(step: int) -> SystemStatePacket:
    """A packet of a run whose loss falls, wavers and jumps, and whose seeds are ever new ones."""
    loss = 0.5 + 0.4 * math.exp(-step / 1e4) + 0.05 * math.sin(step / 50)
    loss += 0.3 if step % 97 == 96 else 0.0
    return make_packet(
        step,
        validation_loss=loss,
        training_loss=loss,
        seeds=(
            make_seed("s0", STAGES[step // 4 % 4], metrics={"alpha": step % 5 / 4}),
            make_seed(f"s{1 + step // 2}"),
        ),
    )


@functools.cache
def _params(number: int) -> Any:
    return init_params(PolicyConfig.small(), jax.random.key(number))


def _update(number: int, params: Any) -> PolicyUpdate:
    update = PolicyUpdate(
        policy_id=f"update-{number}",
        training_run_id="elsewhere",
        issued_at_ns=time.time_ns(),
        policy_version=f"learned-{number}",
        payload=params_to_bytes(params),
        schema_digest=schema_digest(),
    )
    return sign_update(update, Secret(SECRET))


def _inference(tamiyo: Tamiyo) -> WorkerPool:
    return tamiyo._steps.deployed.runner.pool  # the processes are the subject here


def _metadata(tamiyo: Tamiyo) -> WorkerPool:
    pool = tamiyo._parts.metadata
    assert pool is not None
    return pool


def _sample(step: int, tamiyo: Tamiyo, directory: Path) -> Sample:
    """Wait until all spares are warm, and look."""
    deadline = time.monotonic() + _READY_S
    for pool in (_inference(tamiyo), _metadata(tamiyo)):
        while len(pool.pids()) < 1 + tamiyo.config.deadlines.spares:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no warm spare within {_READY_S:g} s of step {step}")
            time.sleep(0.01)
    worker = _inference(tamiyo).pids()[0]
    return Sample(
        step=step,
        resident=_resident("self"),
        worker=worker,
        worker_resident=_resident(worker),
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=len(os.listdir("/proc/self/task")),
        segments=len(list((directory / "run" / "journal").iterdir())),
    )


def _resident(process: int | str) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
