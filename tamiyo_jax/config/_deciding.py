"""Settings of what is decided on, and of the policies that decide."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from tamiyo_jax.config._section import Section

__all__ = [
    "GraphConfig",
    "HeuristicConfig",
    "PacketConfig",
    "PolicyConfig",
]


class PacketConfig(Section, frozen=True):
    """What a state packet may hold."""

    max_metrics: int = Field(
        default=1024, ge=1, description="entries of training_metrics, and of each seed's metrics"
    )
    seedless: bool = Field(default=False, description="the host has no seeds by design")


class GraphConfig(Section, frozen=True):
    """Caps of the graph, and what happens beyond them."""

    max_seeds: int = Field(default=16, ge=1, description="seeds of a packet")
    max_blueprints: int = Field(
        default=8, ge=1, description="the active blueprint and its candidates together"
    )
    max_layers: int = Field(default=512, ge=1, description="layers of a blueprint")
    max_activations: int = Field(default=512, ge=1, description="activations of a blueprint")
    max_parameters: int = Field(default=64, ge=1, description="parameters of a blueprint")
    max_edges: int = Field(default=4096, ge=1, description="edges of one listed relation")
    strict_features: bool = Field(
        default=True, description="a missing required feature is an error"
    )
    overflow: Literal["error", "truncate"] = Field(
        default="error", description="what a graph beyond its caps is"
    )
    normalizer_rate: float = Field(default=0.1, gt=0, le=1, description="weight of the newest step")

    def node_cap(self, node_type: str) -> int:
        """Largest number of nodes of `node_type` in one graph."""
        caps = {
            "global": 1,
            "seed": self.max_seeds,
            "blueprint": self.max_blueprints,
            "layer": self.max_layers,
            "activation": self.max_activations,
            "parameter": self.max_parameters,
        }
        return caps[node_type]


class PolicyConfig(Section, frozen=True):
    """Widths of the network, and how its answers are read.

    `reference` is the default, `small` learns quickly on a laptop.
    """

    sage_width: int = Field(default=256, ge=2, description="width of the GraphSAGE layers")
    gat_width: int = Field(default=128, ge=2, description="width of the attention layers")
    heads: int = Field(default=4, ge=1, description="attention heads")
    blending_methods: tuple[str, ...] = Field(
        default=("linear", "cosine", "warmup_hold"),
        min_length=1,
        description="names of the blending methods, in the order of the network's outputs",
    )
    dropout: float = Field(default=0.2, ge=0, lt=1, description="share dropped while learning")
    risk_semantics: Literal["severity", "max_probability"] = Field(
        default="severity",
        description="the risk score: probability of the two gravest classes, or of the likeliest",
    )
    version: str = Field(
        default="tamiyo-policy-1", min_length=1, description="names the policy in annotations"
    )
    blend_annotations: Literal["off", "CONVEX", "RESIDUAL"] = Field(
        default="off",
        description="whether SEED commands say how the seed joins its host, and the mode of a "
        "seed that has no parameters of another",
    )

    @classmethod
    def reference(cls) -> Self:
        """The widths 256/128 with 4 heads."""
        return cls()

    @classmethod
    def small(cls) -> Self:
        """The widths 32/16 with 2 heads, for learning on a laptop."""
        return cls(sage_width=32, gat_width=16, heads=2)


class HeuristicConfig(Section, frozen=True):
    """The rules of the heuristic policy; counted in epochs unless said otherwise."""

    plateau_epochs: int = Field(
        default=3, ge=1, description="epochs without an improvement that make a plateau"
    )
    plateau_improvement: float = Field(default=0.005, ge=0, description="relative gain that counts")
    probe_ratio: float = Field(
        default=1.0,
        gt=0,
        description="gradient of a candidate, as a multiple of the network's own, that calls for "
        "growth without a plateau",
    )
    min_epochs: int = Field(default=5, ge=0, description="no germination before this epoch")
    embargo_epochs: int = Field(default=5, ge=0, description="no germination so soon after a cull")
    train_epochs: int = Field(default=3, ge=1, description="training of a seed before it blends")
    cull_penalty: float = Field(default=2.0, ge=0, description="penalty of a culled blueprint")
    penalty_decay: float = Field(
        default=0.5, gt=0, lt=1, description="factor on every penalty per epoch"
    )
    penalty_skip: float = Field(
        default=0.1, ge=0, description="a blueprint with a higher penalty waits its turn"
    )
    harm_fraction: float = Field(
        default=0.02, ge=0, description="relative loss that counts as harm"
    )
    harm_epochs: int = Field(default=3, ge=1, description="epochs of harm that cull a seed")
    rising_epochs: int = Field(default=3, ge=1, description="rises in a row that call for a brake")
    brake: float = Field(
        default=0.2, gt=0, lt=1, description="share of the learning rate taken off"
    )
    smoothing: float = Field(
        default=0.3, gt=0, le=1, description="weight of the newest training loss"
    )
