"""What telemetry sinks cost a decision step.

    .venv/bin/python benchmarks/sinks.py

Controllers that differ in their sink alone decide on the same packets in turns, with the heuristic
in this process. Without a sink no packet is built. The step itself builds the packet and puts it
into a queue; the sink works in a thread of its own, and what that takes from the step is the
interpreter's lock. Every queue is emptied after each round, so that no sink is measured while
another still writes; the time for that is the row *delivery*.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from harness import Timing, report
from isolation import PATIENT, ROUNDS, packets

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.demo import digits_task
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.telemetry import (
    JsonLinesSink,
    OpenTelemetrySink,
    PrometheusSink,
    Sink,
    TensorBoardSink,
    WandbSink,
)

WARMUP = 20


@contextmanager
def no_sink(directory: Path) -> Iterator[tuple[Sink, ...]]:
    """No packet is built."""
    yield ()


@contextmanager
def json_lines(directory: Path) -> Iterator[tuple[Sink, ...]]:
    """A file of JSON lines."""
    yield (JsonLinesSink(directory / "telemetry.jsonl"),)


@contextmanager
def prometheus(directory: Path) -> Iterator[tuple[Sink, ...]]:
    """A registry that nothing scrapes meanwhile."""
    from prometheus_client import CollectorRegistry

    yield (PrometheusSink(CollectorRegistry()),)


@contextmanager
def opentelemetry(directory: Path) -> Iterator[tuple[Sink, ...]]:
    """Metrics, logs and spans, exported to memory in batches."""
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, InMemoryLogRecordExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    logs = LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(BatchLogRecordProcessor(InMemoryLogRecordExporter()))
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    yield (OpenTelemetrySink(meters, logs, tracers),)
    meters.shutdown()
    logs.shutdown()
    tracers.shutdown()


@contextmanager
def tensorboard(directory: Path) -> Iterator[tuple[Sink, ...]]:
    """Event files."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(directory / "board"))
    yield (TensorBoardSink(writer),)
    writer.close()


@contextmanager
def wandb(directory: Path) -> Iterator[tuple[Sink, ...]]:
    """Weights & Biases, offline."""
    import wandb as library

    settings = library.Settings(
        silent=True, disable_git=True, disable_code=True, x_disable_stats=True
    )
    run = library.init(mode="offline", dir=str(directory), project="tamiyo", settings=settings)
    yield (WandbSink(run),)
    run.finish()


CASES: Mapping[str, Callable[[Path], AbstractContextManager[tuple[Sink, ...]]]] = {
    "no sink": no_sink,
    "JSON lines": json_lines,
    "Prometheus": prometheus,
    "OpenTelemetry": opentelemetry,
    "TensorBoard": tensorboard,
    "W&B, offline": wandb,
}


def measure(root: Path) -> dict[str, Timing]:
    """Steps, and the delivery of their packets, by sink, in turns."""
    task = digits_task(seed=0)
    library = MemoryBlueprintLibrary()
    for blueprint in (task.blueprint, *task.candidates):
        library.put(blueprint)
    recorded = packets(
        task.blueprint.blueprint_id, tuple(candidate.blueprint_id for candidate in task.candidates)
    )
    steps: dict[str, list[float]] = {name: [] for name in CASES}
    deliveries: dict[str, list[float]] = {name: [] for name in CASES}
    with ExitStack() as stack:
        controllers: dict[str, Tamiyo] = {}
        for number, (name, case) in enumerate(CASES.items()):
            directory = root / str(number)
            directory.mkdir()
            controllers[name] = stack.enter_context(
                Tamiyo.open(
                    TamiyoConfig(deadlines=PATIENT),
                    directory=directory / "tamiyo",
                    library=library,
                    policy="heuristic",
                    secret=os.urandom(32),
                    isolation="inline",
                    sinks=stack.enter_context(case(directory)),
                )
            )
        for step in range(ROUNDS + WARMUP):
            for name, tamiyo in controllers.items():
                started = time.perf_counter()
                tamiyo.step(recorded[step])
                answered = time.perf_counter()
                assert tamiyo._parts.telemetry.flush(60.0)
                if step >= WARMUP:
                    steps[name].append((answered - started) * 1e3)
                    deliveries[name].append((time.perf_counter() - answered) * 1e3)
    rows = {f"step, {name}": Timing.of(sample) for name, sample in steps.items()}
    return rows | {
        f"delivery, {name}": Timing.of(sample)
        for name, sample in deliveries.items()
        if name != "no sink"
    }


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as root:
        rows = measure(Path(root))
    bare = rows["step, no sink"].median
    costs = {name: round(rows[f"step, {name}"].median - bare, 3) for name in CASES}
    report("sinks", rows, {"a sink adds to a step, ms at the median": costs})


if __name__ == "__main__":
    main()
