"""What this machine can do at best: read memory, multiply matrices; and what a call takes of it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

__all__ = ["MATMUL_FLOPS", "matmul", "streaming", "working_memory_mb"]

MATMUL_WIDTH = 1_024
MATMUL_FLOPS = 2 * MATMUL_WIDTH**3
ROW = 1_024


def streaming(size: int) -> Callable[[], object]:
    """A call that reads `size` bytes of floats once, and again when it is repeated.

    What fits a cache is read from there, as weights are that are used over and over.
    """
    weights, x = jnp.ones((max(size // (4 * ROW), 1), ROW), jnp.float32), jnp.ones(ROW, jnp.float32)
    read = jax.jit(lambda weights, x: weights @ x)
    return lambda: jax.block_until_ready(read(weights, x))


def matmul() -> Callable[[], object]:
    """A call that does `MATMUL_FLOPS` in one product of square matrices."""
    matrix = jnp.ones((MATMUL_WIDTH, MATMUL_WIDTH), jnp.float32)
    product = jax.jit(lambda matrix: matrix @ matrix)
    return lambda: jax.block_until_ready(product(matrix))


def working_memory_mb(call: Callable[[], object]) -> float:
    """Megabytes (2**20) that a call holds at its peak above what stays resident; Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status_kb("VmRSS")
    call()
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1])
