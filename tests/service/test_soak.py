"""A short soak: what a controller holds of the machine does not grow, whatever happens to it.

It runs in a process of its own, which holds nothing of other tests.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median_low

import pytest
from service.soak import Sample, Soak, soak

STEPS = 2_400
SAMPLE_EVERY = 48
WARM = 1_200  # steps after which every event has happened once and the ring in memory is full


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    directory = tmp_path_factory.mktemp("soak")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(
            soak, directory, steps=STEPS, sample_every=SAMPLE_EVERY, retention_hours=24
        ).result()


def halves(seen: Soak, read: Callable[[Sample], int]) -> tuple[int, int]:
    """The median of the first half after the warm-up, and of the second.

    A single sample may fall into the moment in which a file is being opened or closed.
    """
    warm = [read(sample) for sample in seen.samples if sample.step >= WARM]
    middle = len(warm) // 2
    return median_low(warm[:middle]), median_low(warm[middle:])


@pytest.mark.slow
def test_exactly_the_steps_fail_whose_worker_was_killed_and_all_are_on_record(seen: Soak) -> None:
    assert seen.surprises == Counter()
    assert set(seen.expected) == {"PolicyFailureError", "DeadlineExceededError"}
    assert len(seen.events) == 6
    assert len({sample.worker for sample in seen.samples}) >= 4


@pytest.mark.slow
def test_open_files_and_threads_do_not_grow(seen: Soak) -> None:
    for read in (lambda one: one.descriptors, lambda one: one.threads):
        before, after = halves(seen, read)
        assert after <= before, [(sample.step, read(sample)) for sample in seen.samples]


@pytest.mark.slow
def test_resident_memory_is_bounded(seen: Soak) -> None:
    before, after = halves(seen, lambda one: one.resident)
    assert after - before < 10e6
    for worker in {sample.worker for sample in seen.samples if sample.step >= WARM}:
        life = [sample.worker_resident for sample in seen.samples if sample.worker == worker][1:]
        assert not life or life[-1] - life[0] < 10e6
