"""The graphs that benchmarks measure on: blueprints and packets, as a host would send them.

- *toy*: 1 global, 4 seeds, 1 blueprint, 4 layers, 2 activations, 2 parameters.
- *network*: 16 seeds, 512 layers, 64 activations, 64 parameters, all relations complete.
- *large*: 10,000 nodes with 3,000 listed edges in each relation that the blueprint may list.
  `sparse` makes graphs of the same proportions with any number of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import jax
import numpy as np

from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import (
    ActivationSpec,
    Blueprint,
    BlueprintTier,
    LayerEdge,
    LayerSpec,
    MonitoredLayer,
    ParameterSpec,
    SeedStage,
    SeedState,
    SystemStatePacket,
)
from tamiyo_jax.graph import (
    NODE_TYPES,
    RELATIONS,
    BlueprintArrays,
    GraphLayout,
    GraphsTuple,
    RawGraph,
    Registries,
    build,
    compact,
    encode_blueprint,
    encode_packet,
    init_normalizer,
    layout_for,
)

__all__ = [
    "SIZES",
    "Size",
    "exactly",
    "explicit",
    "in_buckets",
    "large",
    "network",
    "sparse",
    "toy",
]

LAYER_TYPES = ("dense", "convolution", "normalization", "attention")
ACTIVATION_TYPES = ("relu", "gelu")
BLUEPRINT_ID = "host"

_build = jax.jit(build, static_argnums=0)


@dataclass(frozen=True)
class Size:
    """A graph to measure on.

    Attributes:
      name: the size.
      blueprint: the only blueprint, also the only candidate.
      packet: the first packet of a run.
      config: caps.
    """

    name: str
    blueprint: Blueprint
    packet: SystemStatePacket
    config: GraphConfig

    @cached_property
    def layout(self) -> GraphLayout:
        """The layout that the blueprint gets."""
        return layout_for(self.blueprint, self.config)

    @cached_property
    def arrays(self) -> BlueprintArrays:
        """What the cache of blueprints holds."""
        return encode_blueprint(self.blueprint, self.layout, config=self.config)

    def packets(self, count: int) -> list[SystemStatePacket]:
        """Packets of a run whose loss falls."""
        return [
            replace(
                self.packet,
                packet_id=f"packet-{step}",
                current_epoch=step,
                global_step=33 * step,
                validation_loss=1.0 / (1.0 + 0.01 * step),
                training_loss=0.9 / (1.0 + 0.01 * step),
                training_metrics={
                    **self.packet.training_metrics,
                    "loss": 0.9 / (1.0 + 0.01 * step),
                },
            )
            for step in range(count)
        ]

    def encoded(self, packet: SystemStatePacket) -> RawGraph:
        """A packet as the encoder writes it."""
        raw, _ = encode_packet(
            packet, self.arrays, (self.blueprint,), Registries.empty(), config=self.config
        )
        return raw

    def graphs(self, count: int) -> list[GraphsTuple]:
        """What the network reads, for `count` packets that each start from the priors."""
        priors = init_normalizer()
        return [
            _build(self.layout, priors, self.encoded(packet))[1] for packet in self.packets(count)
        ]


def explicit(
    layout: GraphLayout, graph: GraphsTuple
) -> tuple[dict[str, np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The same graph without padding and with complete relations written out.

    Returns:
      Features f32[n, F] by node type, and by relation i32[2, e], rows within both types, and
      f32[e, 3].
    """
    plain = jax.tree.map(np.asarray, compact(layout, graph))
    real, links = int(plain.n_node[0]), int(plain.n_edge[0])
    types, relations = plain.nodes["type"][:real], plain.edges["relation"][:links]
    first = {kind.name: np.searchsorted(types, i) for i, kind in enumerate(NODE_TYPES)}
    nodes = {
        kind.name: plain.nodes["x"][:real][types == i, : kind.width]
        for i, kind in enumerate(NODE_TYPES)
    }
    edges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for i, relation in enumerate(RELATIONS):
        mine = relations == i
        senders = plain.senders[:links][mine] - first[relation.source]
        receivers = plain.receivers[:links][mine] - first[relation.target]
        edges[relation.key] = np.stack([senders, receivers]), plain.edges["x"][:links][mine]
    return nodes, edges


def toy() -> Size:
    """14 nodes, under the default caps."""
    blueprint, packet = _plain(seeds=4, layers=4, activations=2, parameters=2)
    return Size("toy", blueprint, packet, GraphConfig())


def network() -> Size:
    """658 nodes and about 111,000 edges when they are written out, under the default caps."""
    blueprint, packet = _plain(seeds=16, layers=512, activations=64, parameters=64)
    return Size("network", blueprint, packet, GraphConfig())


def large() -> Size:
    """10,000 nodes and about 60,000 edges."""
    return replace(sparse(10_000, exactly), name="large")


def in_buckets(count: int) -> int:
    """A cap that leaves a layout to its buckets: the next power of two."""
    return 1 << (count - 1).bit_length()


def exactly(count: int) -> int:
    """A cap that leaves no padding."""
    return count


def sparse(nodes: int, cap: Callable[[int], int] = in_buckets) -> Size:
    """A graph whose blueprint lists the pairs of every relation between types of many nodes.

    Args:
      nodes: in all.
      cap: of the caps, for each type's count and for the number of edges of a listed relation.
    """
    seeds, layers, activations = (max(round(nodes * share), 1) for share in (0.0256, 0.6, 0.2))
    parameters = nodes - 2 - seeds - layers - activations
    links = round(nodes * 0.3)
    blueprint, packet = _plain(
        seeds=seeds, layers=layers, activations=activations, parameters=parameters
    )
    random = np.random.default_rng(0)

    def pairs(sources: int, targets: int) -> list[tuple[int, int]]:
        cells = random.choice(sources * targets, min(links, sources * targets), replace=False)
        return list(zip(*(end.tolist() for end in np.divmod(cells, targets)), strict=True))

    allowed: dict[str, list[str]] = {seed.seed_id: [] for seed in packet.seeds}
    for seed, parameter in pairs(seeds, parameters):
        allowed[f"seed-{seed}"].append(f"parameter-{parameter}")
    blueprint = replace(
        blueprint,
        chain=False,
        layer_edges=tuple(LayerEdge(*ends) for ends in pairs(layers, layers)),
        monitored_layers=tuple(
            MonitoredLayer(f"seed-{seed}", layer) for seed, layer in pairs(seeds, layers)
        ),
        allowed_parameters_by_seed_id={one: tuple(names) for one, names in allowed.items()},
        relation_pairs={
            "layer__activates__activation": tuple(pairs(layers, activations)),
            "activation__affects__layer": tuple(pairs(activations, layers)),
            "layer__feeds__activation": tuple(pairs(layers, activations)),
            "activation__configures__parameter": tuple(pairs(activations, parameters)),
            "parameter__modulates__activation": tuple(pairs(parameters, activations)),
        },
    )
    config = GraphConfig(
        max_seeds=cap(seeds),
        max_blueprints=1,
        max_layers=cap(layers),
        max_activations=cap(activations),
        max_parameters=cap(parameters),
        max_edges=cap(links),
    )
    return Size(f"{nodes:,} nodes", blueprint, packet, config)


def _plain(
    *, seeds: int, layers: int, activations: int, parameters: int
) -> tuple[Blueprint, SystemStatePacket]:
    """A chain of layers that lists nothing else, and a packet with every seed blending."""
    blueprint = Blueprint(
        BLUEPRINT_ID,
        tier=BlueprintTier.SAFE,
        risk=0.2,
        stage=3,
        layers=tuple(
            LayerSpec(
                f"layer-{i}",
                LAYER_TYPES[i % len(LAYER_TYPES)],
                i,
                activation=ACTIVATION_TYPES[i % len(ACTIVATION_TYPES)],
                latency_ms=4.0 + i % 5,
                parameter_count=1_000 + 100 * (i % 50),
                weight_norm=0.5 + 0.1 * (i % 7),
                gradient_norm=0.5 + 0.1 * (i % 11),
            )
            for i in range(layers)
        ),
        activations=tuple(
            ActivationSpec(
                f"activation-{i}",
                ACTIVATION_TYPES[i % len(ACTIVATION_TYPES)],
                saturation_rate=0.1 * (i % 10),
                gradient_flow=0.8,
                computational_cost=64.0 + i % 128,
                nonlinearity_strength=0.5,
            )
            for i in range(activations)
        ),
        parameters=tuple(
            ParameterSpec(f"parameter-{i}", 0.0, 1.0 + 0.1 * (i % 10)) for i in range(parameters)
        ),
        chain=True,
        allowed_blending_methods=("linear", "cosine"),
    )
    packet = SystemStatePacket(
        packet_id="packet-0",
        training_run_id="benchmark",
        blueprint_id=BLUEPRINT_ID,
        validation_loss=1.0,
        training_loss=0.9,
        training_metrics={
            "loss": 0.9,
            "gradient_norm": 1.0,
            "samples_per_s": 4_000.0,
            "hook_latency_ms": 1.0,
            "epochs_total": 100.0,
        },
        seeds=tuple(
            SeedState(
                f"seed-{i}",
                SeedStage.BLENDING,
                gradient_norm=0.5 + 0.1 * (i % 8),
                learning_rate=0.01,
                risk_score=0.1 * (i % 6),
                layer_depth=i * layers // seeds,
                age_epochs=i % 20,
            )
            for i in range(seeds)
        ),
        optimizer_id="adam",
    )
    return blueprint, packet


SIZES: Mapping[str, Callable[[], Size]] = {"toy": toy, "network": network, "large": large}
