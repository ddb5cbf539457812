"""Tamiyo: a controller for neural-network training runs, in functional JAX.

What is stable stands here; everything else is reached through its module.
"""

from importlib.metadata import version

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    Blueprint,
    CommandType,
    SeedStage,
    SeedState,
    SystemStatePacket,
)
from tamiyo_jax.controller import TamiyoState
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.serving import connect
from tamiyo_jax.training import Plug

__version__ = version("tamiyo_jax")

__all__ = [
    "AdaptationCommand",
    "Blueprint",
    "CommandType",
    "Decision",
    "Plug",
    "SeedStage",
    "SeedState",
    "SystemStatePacket",
    "Tamiyo",
    "TamiyoConfig",
    "TamiyoError",
    "TamiyoState",
    "__version__",
    "connect",
]
