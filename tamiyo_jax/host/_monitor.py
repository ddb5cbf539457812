"""Measuring a training run inside its own jitted step, and refusing the steps that would ruin it.

`monitor` wraps any Optax optimiser and leaves its updates as they are. `guarded` does the same,
and does not apply a step that is not finite, or that is an outlier of the run itself. Both
measure the same numbers, so a monitor says what a guard would have refused.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.host._detector import detect
from tamiyo_jax.host._measuring import Measured, divide, layers_of, measure, sample
from tamiyo_jax.host._naming import select_trained
from tamiyo_jax.host._packed import count, flag, number, pack, row
from tamiyo_jax.host._signals import Signals, no_signals
from tamiyo_jax.host._windows import Detector, new_detector

__all__ = [
    "MonitorState",
    "Refusals",
    "Statistics",
    "guarded",
    "layer_names",
    "monitor",
    "statistics",
    "unless_refused",
]

Params = Any
Tree = TypeVar("Tree")
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Refusals(NamedTuple):
    """The steps that `guarded` did not apply; `monitor` refuses none.

    Attributes:
      numbers: f32[7], all of the following.
      refused: bool[], this step is one.
      steps: f32[], of many steps together, how many of them are.
      in_row: i32[], ruinous steps up to this one, of which after 32 only those that are not
        finite were refused; 0 under `monitor`.
      by_cause: i32[5], since the start: not finite; a loss, a gradient, an update or a metric out
        of the ordinary. A step with several causes counts for the first.
    """

    numbers: Float32[Array, "*steps 7"]

    refused = flag(0)
    steps = number(0)
    in_row = count(1)

    @property
    def by_cause(self) -> Any:  # noqa: ANN401 - i32[5] of JAX or of NumPy
        """i32[5], steps refused since the start; see `Refusals`."""
        return self.numbers[..., 2:].astype(jnp.int32)


class Statistics(NamedTuple):
    """Measurements of one step over L layers, in the order of `layer_names`.

    With leading axes, they are of many steps.

    Attributes:
      layers: f32[4, L], the following four.
      gradient_norm: f32[L].
      weight_norm: f32[L].
      update_ratio: f32[L], of what the optimiser made, whether or not it was applied.
      gradient_variance: f32[L].
      conflict: f32[], a share in [0, 1].
      signals: the step beside those before it.
      refusals: what was not applied.
    """

    layers: Float32[Array, "*steps 4 layers"]
    conflict: Float32[Array, "*steps"]
    signals: Signals
    refusals: Refusals

    gradient_norm = row(0)
    weight_norm = row(1)
    update_ratio = row(2)
    gradient_variance = row(3)


class MonitorState(NamedTuple):
    """State of `monitor` and of `guarded`.

    Attributes:
      inner: the wrapped optimiser's.
      gradient_mean: f32[L, k], the moving average of each layer's sampled gradient.
      detector: what is usual for this run.
      statistics: the newest numbers.
    """

    inner: optax.OptState
    gradient_mean: Float32[Array, "layers sample"]
    detector: Detector
    statistics: Statistics


def layer_names(params: Params) -> tuple[str, ...]:
    """Names of the layers of a parameter tree: the paths of arrays without their last part."""
    return tuple(layers_of(params))


def monitor(
    tx: optax.GradientTransformation, *, metrics: Mapping[str, float] = NOTHING
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser so that it also measures; the updates stay the same.

    Read the numbers with `statistics`. ``update(gradient, state, params, loss=loss)`` needs the
    parameters. Without the loss, f32[] of this step, nothing is said of it; it is not handed on.

    Args:
      tx: to wrap.
      metrics: what else to watch, by name, where a high value is bad: the approximate KL divergence
        of PPO, which shows a bad batch when the loss does not. To each belongs the least spread
        that counts, a hundredth of what would be alarming for instance. ``update`` then
        takes ``metrics={"approx_kl": approx_kl}``, f32[] each; NaN says nothing.

    Raises:
      ConfigurationError: from ``init``, there is no array to measure; from ``update``, no
        parameters were given, or other metrics than those named here.
    """
    return _wrap(tx, metrics, refuse=False)


def guarded(
    tx: optax.GradientTransformation, *, metrics: Mapping[str, float] = NOTHING
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimiser so that it measures as `monitor` does, and refuses a ruinous step.

    A refused step leaves the parameters and the state of `tx` as they were, bit for bit: its
    updates are −0, which added to any number gives that number. So put it around everything
    else that has a state, and hand the state of the model that is no parameter, such as
    the running averages of a BatchNorm, to `unless_refused`. A step that is not refused has the
    updates of `tx`.

    Refused is a step whose loss, gradient or update is NaN or infinite, always, and an outlier
    of the run, at most 32 times in a row. After that it is applied; an update that is too large
    is first scaled down to the median of those before it. Where it wraps `optax.MultiSteps`, a
    ruinous batch is left out of the accumulated gradient; wrapped by it, the accumulated step is
    refused.

    Args:
      tx: to wrap.
      metrics: as for `monitor`. A step is refused where one is above ten times its median and nine
        spreads above it.

    Raises:
      ConfigurationError: as `monitor` does.
    """
    return _wrap(tx, metrics, refuse=True)


def _wrap(
    tx: optax.GradientTransformation, watched: Mapping[str, float], *, refuse: bool
) -> optax.GradientTransformationExtraArgs:
    inner = optax.with_extra_args_support(tx)
    least_spreads = np.array(list(watched.values()), np.float32)
    if not (least_spreads > 0).all():
        raise ConfigurationError(
            f"the least spreads of the metrics are {dict(watched)}; each must be above 0",
            field="metrics",
            value=dict(watched),
        )

    def init(params: Params) -> MonitorState:
        layers = layers_of(params)
        if not layers:
            raise ConfigurationError("the parameters hold no array; give monitor some to measure")
        return MonitorState(
            inner.init(params),
            jnp.zeros_like(sample(layers.values())),
            new_detector(len(layers), len(watched)),
            _make_initial(len(layers)),
        )

    def update(
        gradient: Params,
        state: MonitorState,
        params: Params | None = None,
        *,
        loss: jax.Array | None = None,
        metrics: Mapping[str, jax.typing.ArrayLike] = NOTHING,
        **extra: object,
    ) -> tuple[Params, MonitorState]:
        if params is None:
            raise ConfigurationError(
                "monitor measures weights; call update(gradient, state, params)"
            )
        if set(metrics) != set(watched):
            raise ConfigurationError(
                f"update was given the metrics {sorted(metrics)}, not {sorted(watched)}; "
                "name them where the optimiser is wrapped: guarded(tx, metrics={name: spread})",
                field="metrics",
                value=sorted(metrics),
            )
        numbers = [jnp.asarray(metrics[name], jnp.float32) for name in watched]
        params = select_trained(gradient, params)
        updates, inner_state = inner.update(gradient, state.inner, params, **extra)
        mean, measured = measure(
            gradient,
            updates,
            params,
            gradient_mean=state.gradient_mean,
            gradient_variance=state.statistics.gradient_variance,
        )
        before = state.statistics.refusals
        signals, detector = detect(
            state.detector,
            loss=None if loss is None else jnp.asarray(loss, jnp.float32),
            gradient_norm=jnp.linalg.norm(measured.gradient_norm),
            update_ratio=divide(
                jnp.linalg.norm(measured.update_norm), jnp.linalg.norm(measured.weight_norm)
            ),
            layer_gradient_norms=measured.gradient_norm,
            metrics=jnp.stack(numbers) if numbers else jnp.zeros(0, jnp.float32),
            least_spreads=least_spreads,
        )
        refused = signals.refusable
        if refuse:
            updates = _bounded(updates, signals)
            inner_state = _select(refused, state.inner, inner_state)
            mean = _select(refused, state.gradient_mean, mean)
        in_row = detector.levels.ruinous_in_row if refuse else jnp.int32(0)
        refusals = _count_refusal(before, signals, refused & refuse, in_row)
        newest = _numbers(measured, signals, refusals)
        return updates, MonitorState(inner_state, mean, detector, newest)

    return optax.GradientTransformationExtraArgs(
        init, cast(optax.TransformUpdateExtraArgsFn, update)
    )


def statistics(opt_state: object) -> Statistics:
    """The newest numbers in an optimiser state, or any pytree around one, that holds a `monitor`.

    Call it inside the jitted step and return them as an output of the step: the optimiser
    state's own buffers may have been donated by the time that anyone reads them.

    Raises:
      ConfigurationError: there is no monitor in it, or more than one.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, MonitorState))
    found = [node for node in nodes if isinstance(node, MonitorState)]
    if len(found) != 1:
        remedy = (
            "wrap it once"
            if found
            else "wrap it, monitor(tx), and give a state that holds the one that its init made: "
            "parameters alone hold none"
        )
        raise ConfigurationError(
            f"the optimiser is not monitored once but {len(found)} times; {remedy}",
            monitors=len(found),
        )
    arrays = jax.tree.leaves(found[0].statistics)  # NNX boxes an optimiser's arrays
    return jax.tree.unflatten(_structure(), arrays)


def unless_refused(opt_state: object, new: Tree, old: Tree) -> Tree:
    """`new`, or `old` where the newest step was refused: for state that is no parameter.

    Call it inside the jitted step, after ``update``::

        batch_stats = unless_refused(opt_state, new=batch_stats, old=state.batch_stats)

    Args:
      opt_state: as for `statistics`.
      new: pytree of arrays, after the step.
      old: likewise, before it.

    Raises:
      ConfigurationError: as `statistics` does.
    """
    return _select(statistics(opt_state).refusals.refused, old, new)


def _bounded(updates: Params, signals: Signals) -> Params:
    """The updates; −0 where the step is refused, of the usual size where it is an outlier."""
    usual = jnp.exp(-signals.update_jump)

    def bound(update: jax.Array) -> jax.Array:
        scaled = update * usual.astype(update.dtype)
        accepted = jnp.where(signals.update_outlier, scaled, update)
        return jnp.where(signals.refusable, -jnp.zeros_like(update), accepted)

    return jax.tree.map(bound, updates)


def _numbers(measured: Measured, signals: Signals, refusals: Refusals) -> Statistics:
    layers = [
        measured.gradient_norm,
        measured.weight_norm,
        divide(measured.update_norm, measured.weight_norm),
        measured.gradient_variance,
    ]
    return Statistics(jnp.stack(layers), measured.conflict, signals, refusals)


def _count_refusal(
    before: Refusals, signals: Signals, refused: jax.Array, in_row: jax.Array
) -> Refusals:
    causes = jnp.stack(
        [
            signals.nonfinite,
            signals.loss_outlier,
            signals.gradient_outlier,
            signals.update_outlier,
            signals.metric_outlier,
        ]
    )
    first = (jnp.arange(causes.size) == jnp.argmax(causes)) & refused
    by_cause = before.numbers[2:] + first.astype(jnp.float32)
    return Refusals(jnp.concatenate([pack(refused, in_row), by_cause]))


def _select(condition: jax.Array, yes: Tree, no: Tree) -> Tree:
    """Arrays of `yes` where the condition holds, else of `no`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _make_initial(layers: int) -> Statistics:
    """Before the first step."""
    none = Refusals(jnp.zeros(7, jnp.float32))
    return Statistics(jnp.zeros((4, layers), jnp.float32), jnp.float32(0), no_signals(), none)


@functools.cache
def _structure() -> Any:  # noqa: ANN401 - JAX has no public name for the type
    return jax.tree.structure(jax.eval_shape(lambda: _make_initial(0)))
