"""The meter reports what the kernel and the device's allocator measure, and nothing else."""

from __future__ import annotations

import os
import time
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax
import psutil
import pytest
from making import make_packet

from tamiyo_jax import host
from tamiyo_jax.contracts import validate_packet


@dataclass(frozen=True)
class Accelerator:
    """A device with figures of its own."""

    figures: Mapping[str, int] | None
    platform: str = "gpu"
    id: int = 3

    def memory_stats(self) -> Mapping[str, int] | None:
        return self.figures


def test_a_cpu_has_the_memory_of_its_host():
    context = host.HardwareMeter(jax.local_devices()[0]).read().context
    assert context.device_type == "cpu"
    assert context.total_memory_gb is not None
    assert context.available_memory_gb is not None
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert context.total_memory_gb == pytest.approx(pages / 1e9, rel=0.05)
    assert 0 < context.available_memory_gb <= context.total_memory_gb


def test_an_accelerator_has_the_memory_of_its_allocator():
    device = Accelerator({"bytes_limit": 8_000_000_000, "bytes_in_use": 6_500_000_000})
    reading = host.HardwareMeter(device).read()
    assert reading.context.device_type == "gpu"
    assert reading.context.device_id == "3"
    assert reading.context.total_memory_gb == 8.0
    assert reading.context.available_memory_gb == 1.5
    assert reading.metrics["gpu_mem_free_gb"] == 1.5
    assert reading.context.utilization_percent is None


@pytest.mark.parametrize("figures", [None, {}, {"bytes_in_use": 5}])
def test_what_an_allocator_does_not_report_is_absent(figures):
    reading = host.HardwareMeter(Accelerator(figures)).read()
    assert reading.context.total_memory_gb is None
    assert reading.context.available_memory_gb is None
    assert "gpu_mem_free_gb" not in reading.metrics


def test_the_use_of_the_cpu_is_absent_until_there_is_a_second_of_it():
    meter = host.HardwareMeter(jax.local_devices()[0])
    assert "cpu_util_percent" not in meter.read().metrics
    ends = time.monotonic() + 10
    spins = time.monotonic() + 1.5
    while "cpu_util_percent" not in (reading := meter.read()).metrics:
        assert time.monotonic() < ends
        while time.monotonic() < spins:  # one core is busy
            pass
    floor = 100 / (os.cpu_count() or 1)
    assert 0.6 * floor <= reading.metrics["cpu_util_percent"] <= 100
    assert reading.context.utilization_percent == reading.metrics["cpu_util_percent"]
    assert meter.read().metrics == reading.metrics  # too soon for another


def test_a_reading_makes_a_valid_packet():
    reading = host.HardwareMeter(jax.local_devices()[0]).read()
    validate_packet(replace(make_packet(), hardware=reading.context))


def test_systems_that_count_fewer_kinds_of_time_are_read_too(monkeypatch: pytest.MonkeyPatch):
    names = ("user", "nice", "system", "idle")  # as macOS has them
    readings = iter([(0.0, 0.0, 0.0, 0.0), (30.0, 0.0, 30.0, 180.0)])
    times = namedtuple("scputimes", names)
    monkeypatch.setattr(psutil, "cpu_times", lambda: times(*next(readings)))
    reading = host.HardwareMeter(jax.local_devices()[0]).read()
    assert reading.metrics["cpu_util_percent"] == pytest.approx(25.0)
