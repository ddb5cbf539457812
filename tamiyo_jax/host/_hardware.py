"""Readings of the hardware, from counters of the kernel and of JAX's allocators.

No reading waits for a device or its queue, so it can be taken at every step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import psutil

from tamiyo_jax.contracts import HardwareContext

__all__ = ["Device", "Hardware", "HardwareMeter"]

GB = 1e9
WINDOW_S = 1.0


@runtime_checkable
class Device(Protocol):
    """The part of a `jax.Device` that is read."""

    @property
    def platform(self) -> str:
        """Its kind, such as ``cpu`` or ``gpu``."""
        ...

    @property
    def id(self) -> int:
        """Its number among all devices of the run."""
        ...

    def memory_stats(self) -> Mapping[str, int] | None:
        """Statistics of its allocator in bytes; None if the backend keeps none."""
        ...


@dataclass(frozen=True, slots=True)
class Hardware:
    """A reading of the hardware.

    Attributes:
      context: the device that trains. Memory is the host's for a CPU, else the device's own,
        absent where JAX's backend keeps no figures.
      metrics: ``cpu_util_percent`` of the whole host, once it is known, and
        ``gpu_mem_free_gb`` of a device with memory of its own. Gigabytes are 10⁹ bytes.
    """

    context: HardwareContext
    metrics: Mapping[str, float]


class HardwareMeter:
    """Reads the memory of a device and the use of the CPUs beside it.

    JAX does not know how busy an accelerator is: if you do, send ``gpu_util_percent`` with the
    other metrics of the packet.

    Args:
      device: usually ``jax.local_devices()[0]``.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._idle, self._total = _cpu_seconds()
        self._busy: float | None = None

    def read(self) -> Hardware:
        """Read now; the use of the CPUs is the mean over at least the last second."""
        self._update_cpu()
        on_cpu = self._device.platform == "cpu"
        total, free = _host_memory() if on_cpu else _device_memory(self._device)
        metrics: dict[str, float] = {}
        if self._busy is not None:
            metrics["cpu_util_percent"] = self._busy
        if free is not None and not on_cpu:
            metrics["gpu_mem_free_gb"] = free
        context = HardwareContext(
            device_type=self._device.platform,
            device_id=str(self._device.id),
            total_memory_gb=total,
            available_memory_gb=free,
            utilization_percent=self._busy if on_cpu else None,
        )
        return Hardware(context, metrics)

    def _update_cpu(self) -> None:
        """Update the use of the CPUs if at least `WINDOW_S` has passed; below it is noise.

        The kernel counts in hundredths of a second, and short readings would be 0 or 100.
        """
        idle, total = _cpu_seconds()
        passed = total - self._total
        if passed < WINDOW_S * (os.cpu_count() or 1):
            return
        share = 1 - (idle - self._idle) / passed
        self._busy = 100 * min(max(share, 0.0), 1.0)
        self._idle, self._total = idle, total


def _cpu_seconds() -> tuple[float, float]:
    """Seconds that all cores were idle, and all their seconds, since the machine started."""
    times = psutil.cpu_times()._asdict()  # which there are depends on the system
    guests = times.get("guest", 0.0) + times.get("guest_nice", 0.0)  # in user and nice as well
    return times["idle"] + times.get("iowait", 0.0), sum(times.values()) - guests


def _host_memory() -> tuple[float, float]:
    """Gigabytes in all, and what can be had without swapping."""
    memory = psutil.virtual_memory()
    return memory.total / GB, memory.available / GB


def _device_memory(device: Device) -> tuple[float | None, float | None]:
    """Gigabytes that JAX may use on the device, and those that it does not use yet."""
    figures = device.memory_stats() or {}
    limit, used = figures.get("bytes_limit"), figures.get("bytes_in_use")
    if limit is None or used is None:
        return None, None
    return limit / GB, (limit - used) / GB
