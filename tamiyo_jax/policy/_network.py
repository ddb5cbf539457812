"""The network: six node types, two SAGE layers, two attention layers, eleven heads.

Parameters are a plain tree of nested dicts that does not depend on the layout. Linen under
`jit` drops what no head reads, so the last layer costs only the global, seed and blueprint
nodes although it is written for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer
from jaxtyping import Array, Bool, Float32, PRNGKeyArray

from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.graph import (
    ATTRIBUTE_WIDTH,
    EDGE_WIDTH,
    FEATURE_WIDTH,
    NODE_TYPES,
    RELATIONS,
    GraphLayout,
    GraphsTuple,
)
from tamiyo_jax.policy._layers import (
    GatRelation,
    RelationalLayer,
    SageRelation,
    gelu,
    node_blocks,
    relation_edges,
    tables,
)
from tamiyo_jax.policy._outputs import NUM_ACTIONS, PolicyOutputs

__all__ = [
    "NUM_BREAKER_LOGITS",
    "NUM_PARAMS",
    "NUM_RISK_CLASSES",
    "Params",
    "PolicyNetwork",
    "abstract_params",
    "apply",
    "init_params",
]

Params = Mapping[str, Any]
"""Nested dicts of f32 arrays; see `abstract_params` for names and shapes."""

Path = tuple[str, ...]

NUM_PARAMS = 4
NUM_RISK_CLASSES = 5
NUM_SCHEDULE = 2
NUM_BREAKER_LOGITS = 2
LAYER_NORM_EPSILON = 1e-5


class Encoder(nn.Module):
    """``LayerNorm(GELU(x W + b))``, one per node type."""

    width: int

    @nn.compact
    def __call__(self, x: Float32[Array, "rows features"]) -> Float32[Array, "rows width"]:
        """Embeddings f32[C + 1, width] of features f32[C + 1, F]."""
        x = gelu(nn.Dense(self.width, name="linear")(x))
        norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, name="norm")
        return norm(x)


class BoundedHead(nn.Module):
    """``tanh(linear(GELU(linear)))`` with a hidden width of half the input's."""

    width: int

    @nn.compact
    def __call__(self, x: Float32[Array, " embedding"]) -> Float32[Array, " width"]:
        """Values f32[width] in [-1, 1] of an embedding f32[D]."""
        x = gelu(nn.Dense(x.shape[-1] // 2, name="hidden")(x))
        return jnp.tanh(nn.Dense(self.width, name="out")(x))


class PolicyNetwork(nn.Module):
    """The heterogeneous graph network of the policy.

    Attributes:
      config: widths, heads, blending methods and dropout.
      layout: the static layout of the graphs.
    """

    config: PolicyConfig
    layout: GraphLayout

    @nn.compact
    def __call__(self, graph: GraphsTuple, *, deterministic: bool = True) -> PolicyOutputs:
        """Outputs for one graph; dropout needs ``deterministic=False`` and a "dropout" key."""
        config, layout = self.config, self.layout
        table = tables(graph)
        edges = relation_edges(layout, table)
        h = {
            kind.name: Encoder(config.sage_width, name=f"encoder_{kind.name}")(x[:, : kind.width])
            for kind, x in zip(NODE_TYPES, node_blocks(layout, table.x).values(), strict=True)
        }
        sage = partial(SageRelation, width=config.sage_width)
        gat = partial(GatRelation, width=config.gat_width, heads=config.heads)
        for name, relation in (("sage_0", sage), ("sage_1", sage), ("gat_0", gat), ("gat_1", gat)):
            layer = RelationalLayer(relation, config.dropout, name=name)
            h = layer(h, edges, deterministic=deterministic)
        return self._heads(h, node_blocks(layout, table.mask))

    def _heads(
        self,
        h: Mapping[str, Float32[Array, "_ embedding"]],
        masks: Mapping[str, Bool[Array, " _"]],
    ) -> PolicyOutputs:
        embedding = h["global"][0]
        params = BoundedHead(NUM_PARAMS, name="policy_params")(embedding)
        methods = len(self.config.blending_methods)
        return PolicyOutputs(
            policy_logits=nn.Dense(NUM_ACTIONS, name="policy_logits")(embedding),
            policy_params=params,
            param_delta=params[0],
            blending_logits=nn.Dense(methods, name="blending_logits")(embedding),
            risk_logits=nn.Dense(NUM_RISK_CLASSES, name="risk_logits")(embedding),
            value=nn.Dense(1, name="value")(embedding)[0],
            schedule_params=BoundedHead(NUM_SCHEDULE, name="schedule_params")(embedding),
            breaker_logits=nn.Dense(NUM_BREAKER_LOGITS, name="breaker_logits")(embedding),
            seed_scores=_scores("seed_scores", h["seed"], masks["seed"]),
            blueprint_scores=_scores("blueprint_scores", h["blueprint"], masks["blueprint"]),
            graph_embedding=embedding,
        )


def _scores(
    name: str, x: Float32[Array, "rows embedding"], mask: Bool[Array, " rows"]
) -> Float32[Array, " nodes"]:
    """Scores f32[C] of a block f32[C + 1, D], -inf on rows that hold no node."""
    return jnp.where(mask[:-1], nn.Dense(1, name=name)(x[:-1])[:, 0], -jnp.inf)


def _smallest_layout() -> GraphLayout:
    return GraphLayout.of(
        {kind.name: 1 for kind in NODE_TYPES},
        {relation.key: 1 for relation in RELATIONS if not relation.complete},
    )


def _blank_graph(layout: GraphLayout) -> GraphsTuple:
    nodes, edges = layout.num_nodes, layout.num_edges
    return GraphsTuple(
        nodes={
            "x": jnp.zeros((nodes, FEATURE_WIDTH)),
            "mask": jnp.zeros(nodes, jnp.bool_),
            "attributes": jnp.zeros((nodes, ATTRIBUTE_WIDTH)),
        },
        edges={"x": jnp.zeros((edges, EDGE_WIDTH)), "mask": jnp.zeros(edges, jnp.bool_)},
        senders=jnp.zeros(edges, jnp.int32),
        receivers=jnp.zeros(edges, jnp.int32),
        n_node=jnp.array([nodes]),
        n_edge=jnp.array([edges]),
        globals=None,
    )


def abstract_params(config: PolicyConfig) -> Params:
    """Names, shapes and dtypes of the parameters, without computing any."""
    return unflatten_dict(dict(_flat_shapes(config)))


@lru_cache(maxsize=8)  # tracing takes about a second
def _flat_shapes(config: PolicyConfig) -> tuple[tuple[Path, jax.ShapeDtypeStruct], ...]:
    layout = _smallest_layout()

    def init() -> Params:
        network = PolicyNetwork(config, layout)
        return cast(Params, network.init(jax.random.key(0), _blank_graph(layout))["params"])

    return tuple(flatten_dict(dict(jax.eval_shape(init))).items())


def init_params(config: PolicyConfig, key: PRNGKeyArray) -> Params:
    """Untrained parameters for `config`; they serve every layout.

    Weights and attention vectors are uniform by Glorot & Bengio 2010, eq. 16, biases 0 and
    normalisation scales 1. The action logits start with weights 0 and bias −0.5, but +0.5
    for action 0. All weights are cut from one draw, because the compiler takes much longer
    over hundreds of small ones.

    Args:
      config: widths, heads and blending methods.
      key: a PRNG key, which is consumed. May be traced: `init_params` works under `jax.jit`
        and `jax.vmap`.
    """
    shapes = dict(_flat_shapes(config))
    random = [path for path in shapes if path[-1].endswith(("kernel", "attention"))]
    ends = list(accumulate(shapes[path].size for path in random))
    draw = jax.random.uniform(key, (ends[-1],), minval=-1.0, maxval=1.0)
    if not isinstance(draw, Tracer):
        draw = np.asarray(draw)  # outside of jit, NumPy slices it without compiling
    params: dict[tuple[str, ...], Any] = {
        path: np.full(leaf.shape, path[-1] == "scale", np.float32) for path, leaf in shapes.items()
    }
    for path, start, end in zip(random, [0, *ends[:-1]], ends, strict=True):
        fan_in, *fan_out = shapes[path].shape
        limit = np.float32(math.sqrt(6.0 / (fan_in + math.prod(fan_out))))
        params[path] = limit * draw[start:end].reshape(shapes[path].shape)
    logits = "policy_logits"
    params[logits, "kernel"] = np.zeros(shapes[logits, "kernel"].shape, np.float32)
    params[logits, "bias"] = np.full(shapes[logits, "bias"].shape, -0.5, np.float32)
    params[logits, "bias"][0] = 0.5
    return unflatten_dict({path: jnp.asarray(array) for path, array in params.items()})


def apply(params: Params, layout: GraphLayout, graph: GraphsTuple) -> PolicyOutputs:
    """Outputs of the network for one graph, without dropout; pure, jittable, vmappable.

    For dropout, and for attention weights, use the module itself: ``PolicyNetwork(config,
    layout).apply({"params": params}, graph, mutable="intermediates")``.

    Args:
      params: parameters, whose shapes give the widths.
      layout: the graph's layout, static.
      graph: a padded graph with N node and E edge rows of that layout.
    """
    outputs = PolicyNetwork(_config_of(params), layout).apply({"params": params}, graph)
    return cast(PolicyOutputs, outputs)


def _config_of(params: Params) -> PolicyConfig:
    """The part of the configuration that the network's shapes follow."""
    heads, gat_width = params["gat_0"][RELATIONS[0].key]["source_attention"].shape
    methods = params["blending_logits"]["bias"].shape[0]
    return PolicyConfig(
        sage_width=params["encoder_global"]["linear"]["bias"].shape[0],
        gat_width=gat_width,
        heads=heads,
        blending_methods=tuple(str(index) for index in range(methods)),
    )
