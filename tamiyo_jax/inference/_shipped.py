"""The trained policy that the package brings along; how it was made stands in its card."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tamiyo_jax._digests import check_digests
from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.policy import Params, load_params

__all__ = ["SHIPPED", "SHIPPED_VERSION", "fits_shipped", "shipped_params"]

SHIPPED_VERSION = "learned-2"
SHIPPED = Path(__file__).parent.parent / "checkpoints" / SHIPPED_VERSION
"""The directory with ``params.safetensors``, ``orbax/`` and ``card.json``."""


def fits_shipped(config: PolicyConfig) -> bool:
    """Whether the shipped parameters answer for a configuration; its widths do not matter."""
    return len(config.blending_methods) == len(PolicyConfig.small().blending_methods)


@cache
def shipped_params() -> Params:
    """The parameters of the shipped policy, of the small widths.

    Raises:
      PersistenceError: the installed files are damaged; install the package again.
    """
    check_digests(SHIPPED)
    return load_params(SHIPPED / "params.safetensors", PolicyConfig.small())
