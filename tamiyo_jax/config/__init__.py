"""One frozen configuration tree, resolved once and handed to every part.

`TamiyoConfig()` is complete without arguments and reads nothing from outside.
`TamiyoConfig.load()` is the one place that looks at a file and at the environment;
`resolve()` does the same and tells where every value comes from.
"""

from tamiyo_jax.config.sections import (
    BreakerConfig,
    DeadlineConfig,
    GraphConfig,
    GuardConfig,
    HeuristicConfig,
    LibraryConfig,
    PacketConfig,
    PolicyConfig,
    PublishingConfig,
    RiskConfig,
    SecurityConfig,
    StorageConfig,
)
from tamiyo_jax.config.sources import Origin
from tamiyo_jax.config.tree import Resolved, TamiyoConfig, resolve, settings_markdown

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
