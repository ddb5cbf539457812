"""The frozen configuration tree, resolved once and passed to every part.

`TamiyoConfig()` is complete without arguments and reads nothing from outside.
`TamiyoConfig.load()` is the only place that reads a file and the environment;
`resolve()` does the same and returns where every value comes from.
"""

from tamiyo_jax.config._deciding import GraphConfig, HeuristicConfig, PacketConfig, PolicyConfig
from tamiyo_jax.config._intervening import BreakerConfig, GuardConfig, RiskConfig
from tamiyo_jax.config._operating import (
    DeadlineConfig,
    LibraryConfig,
    PublishingConfig,
    SecurityConfig,
    StorageConfig,
)
from tamiyo_jax.config._sources import Origin
from tamiyo_jax.config._tree import Resolved, TamiyoConfig, resolve, settings_markdown

__all__ = [
    "BreakerConfig",
    "DeadlineConfig",
    "GraphConfig",
    "GuardConfig",
    "HeuristicConfig",
    "LibraryConfig",
    "Origin",
    "PacketConfig",
    "PolicyConfig",
    "PublishingConfig",
    "Resolved",
    "RiskConfig",
    "SecurityConfig",
    "StorageConfig",
    "TamiyoConfig",
    "resolve",
    "settings_markdown",
]
