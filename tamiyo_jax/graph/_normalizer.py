"""The normaliser: running mean and variance of every statistic, updated once per step."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from tamiyo_jax.graph._layout import GraphLayout
from tamiyo_jax.graph._schema import FEATURE_WIDTH, NODE_TYPES, STATISTICS

__all__ = ["Normalizer", "init_normalizer", "normalize", "update", "update_and_normalize"]

Z_LIMIT = 10.0
VARIANCE_FLOOR = 1e-6


class Normalizer(NamedTuple):
    """State of the normaliser, one entry per statistic, in the order of the schema.

    Attributes:
      mean: f32[S].
      var: f32[S], at least 1e-6.
      count: f32[S], the steps that updated the statistic.
    """

    mean: Float32[Array, " statistics"]
    var: Float32[Array, " statistics"]
    count: Float32[Array, " statistics"]  # pyright: ignore[reportIncompatibleMethodOverride]


def init_normalizer() -> Normalizer:
    """The priors of the schema."""
    return Normalizer(
        mean=jnp.array([statistic.mean for statistic in STATISTICS], jnp.float32),
        var=jnp.array([statistic.std**2 for statistic in STATISTICS], jnp.float32),
        count=jnp.zeros(len(STATISTICS), jnp.float32),
    )


@functools.cache
def _statistic_of_column() -> np.ndarray:
    """i32[T * 16]: the statistic of each column of each type, S where there is none."""
    index = {statistic.name: i for i, statistic in enumerate(STATISTICS)}
    columns = np.full((len(NODE_TYPES), FEATURE_WIDTH), len(STATISTICS), np.int32)
    for row, kind in enumerate(NODE_TYPES):
        for j, column in enumerate(kind.columns):
            if column.statistic is not None:
                columns[row, j] = index[column.statistic]
    return columns.ravel()


def _totals(blocks: list[jax.Array]) -> Float32[Array, " statistics"]:
    """Sum per statistic of blocks f32[n_t, 16], one per node type: f32[S]."""
    columns = jnp.concatenate([block.sum(axis=0) for block in blocks])
    count = len(STATISTICS)
    return jax.ops.segment_sum(columns, _statistic_of_column(), count + 1)[:count]


def _by_column(statistics: Float32[Array, " statistics"], fill: float) -> list[jax.Array]:
    """Spread f32[S] over the columns: one f32[1, 16] per node type, `fill` for raw columns."""
    padded = jnp.append(statistics, jnp.float32(fill))
    columns = padded[_statistic_of_column()].reshape(len(NODE_TYPES), 1, FEATURE_WIDTH)
    return list(columns)


def _by_type(layout: GraphLayout, rows: Float32[Array, "nodes 16"]) -> list[jax.Array]:
    """Split a node table into the blocks of its types, the padding row of each included."""
    ends = [block.padding + 1 for block in layout.nodes.values()]
    return jnp.split(rows, ends[:-1])


def update(
    layout: GraphLayout,
    normalizer: Normalizer,
    values: Float32[Array, "nodes 16"],
    present: Bool[Array, "nodes 16"],
    *,
    rate: float | Float32[Array, ""] = 0.1,
) -> Normalizer:
    """Move every statistic towards the mean m and the variance v of its present values.

    ``d = m − mean; mean += α·d; var = (1−α)(var + α·d²) + α·v``, floored at 1e-6: the
    exponentially weighted mean and variance (West 1979, eq. for batches), where v keeps
    features that differ between nodes but not between steps from running into the clip. A
    statistic without a present value keeps its state. The order of nodes does not matter
    beyond the rounding of a sum.

    Args:
      layout: static.
      normalizer: the state before the step.
      values: f32[N, 16], finite.
      present: bool[N, 16].
      rate: α.
    """
    weights = _by_type(layout, present.astype(jnp.float32))
    blocks = _by_type(layout, values)
    count = _totals(weights)
    some = jnp.maximum(count, 1.0)
    mean = _totals([x * w for x, w in zip(blocks, weights, strict=True)]) / some
    centred = [(x - m) * w for x, w, m in zip(blocks, weights, _by_column(mean, 0.0), strict=True)]
    variance = _totals([deviation * deviation for deviation in centred]) / some

    step = mean - normalizer.mean
    moved = (1.0 - rate) * (normalizer.var + rate * step * step) + rate * variance
    seen = count > 0
    return Normalizer(
        mean=jnp.where(seen, normalizer.mean + rate * step, normalizer.mean),
        var=jnp.where(seen, jnp.maximum(moved, VARIANCE_FLOOR), normalizer.var),
        count=normalizer.count + seen.astype(jnp.float32),
    )


def normalize(
    layout: GraphLayout,
    normalizer: Normalizer,
    values: Float32[Array, "nodes 16"],
    present: Bool[Array, "nodes 16"],
) -> Float32[Array, "nodes 16"]:
    """``(x − mean)/sqrt(var)`` clipped to ±10; raw columns as they are; 0 where absent.

    Args:
      layout: static.
      normalizer: the state to normalise with.
      values: f32[N, 16], finite.
      present: bool[N, 16].

    Returns:
      f32[N, 16].
    """
    raw = _by_column(jnp.zeros_like(normalizer.mean), 1.0)
    rows = [
        jnp.where(is_raw > 0, x, jnp.clip((x - mean) * scale, -Z_LIMIT, Z_LIMIT))
        for x, mean, scale, is_raw in zip(
            _by_type(layout, values),
            _by_column(normalizer.mean, 0.0),
            _by_column(1.0 / jnp.sqrt(normalizer.var), 1.0),
            raw,
            strict=True,
        )
    ]
    return jnp.where(present, jnp.concatenate(rows), 0.0)


def update_and_normalize(
    layout: GraphLayout,
    normalizer: Normalizer,
    values: Float32[Array, "nodes 16"],
    present: Bool[Array, "nodes 16"],
    *,
    rate: float | Float32[Array, ""] = 0.1,
) -> tuple[Normalizer, Float32[Array, "nodes 16"]]:
    """`update`, then `normalize` with the updated state; see both."""
    updated = update(layout, normalizer, values, present, rate=rate)
    return updated, normalize(layout, updated, values, present)
