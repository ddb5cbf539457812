"""Blending a seed into its host: how alpha rises, and what alpha does.

A seed has the share s of its slot's output: x + s·y where it is a branch beside its input
(RESIDUAL), and (1 − s)x + s·y where it takes its input's place (the others).

    RESIDUAL, CONVEX    s = α
    `Channel`           s = α · alpha_vec, a share of its own for each channel
    `Confidence`        s = α · (alpha_lo + (alpha_hi − alpha_lo) · σ(gate_k (gate_tau − m))),
                        m the margin between the two largest of softmax(x), for each example:
                        the surer the host, the less of the seed

At alpha = 0 a slot is an exact identity, forward and backward. Arithmetic cannot promise
that: ``x + 0 * y`` turns −0.0 into 0.0 and an infinite y into NaN, and differentiating a
plain `where` multiplies the zero cotangent of the unused side by that infinity. So the
choice is made on values *and* on cotangents, by `apply_gated`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Shaped

from tamiyo_jax.errors import ConfigurationError

__all__ = [
    "METHODS",
    "Blend",
    "BlendMode",
    "BlendSchedule",
    "Channel",
    "Confidence",
    "alpha_at",
    "apply_gated",
    "blend_metrics",
    "mix",
]

METHODS = ("linear", "cosine", "warmup_hold")
"""Names of the blending methods, in the order in which commands index them."""


class BlendMode(StrEnum):
    """The modes in which the whole output of a seed has one share, α."""

    CONVEX = "CONVEX"
    RESIDUAL = "RESIDUAL"


@dataclass(frozen=True, slots=True)
class Channel:
    """Mode CHANNEL: each channel of the last axis has a share of its own.

    Attributes:
      alpha_vec: the shares at α = 1, in [0, 1], one per channel.

    Raises:
      ConfigurationError: there are none, or one is outside [0, 1].
    """

    alpha_vec: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.alpha_vec or not all(0 <= share <= 1 for share in self.alpha_vec):
            raise ConfigurationError(
                f"alpha_vec is {self.alpha_vec}; give one share in [0, 1] per channel",
                field="alpha_vec",
                value=self.alpha_vec,
            )


@dataclass(frozen=True, slots=True)
class Confidence:
    """Mode CONFIDENCE: for slots on logits, the seed speaks where the host is unsure.

    The gate itself receives no gradient: the host is not to learn to be unsure.

    Attributes:
      gate_k: steepness of the gate, above 0.
      gate_tau: the margin, in [0, 1], at which the gate is half open.
      alpha_lo: the share at α = 1 where the gate is closed, in [0, alpha_hi].
      alpha_hi: the share at α = 1 where it is open, in [alpha_lo, 1].

    Raises:
      ConfigurationError: a number is outside its bounds.
    """

    gate_k: float
    gate_tau: float
    alpha_lo: float
    alpha_hi: float

    def __post_init__(self) -> None:
        ordered = 0 <= self.alpha_lo <= self.alpha_hi <= 1 and 0 <= self.gate_tau <= 1
        if not (ordered and 0 < self.gate_k < math.inf):
            raise ConfigurationError(
                f"{self} is no gate; keep 0 < gate_k, 0 <= gate_tau <= 1 and "
                "0 <= alpha_lo <= alpha_hi <= 1",
                value=self,
            )

    def share(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch 1"]:
        """The share at α = 1 of logits x (f32[..., C], C > 1), f32[..., 1]."""
        first, second = jnp.split(jax.lax.top_k(jax.nn.softmax(x), 2)[0], 2, axis=-1)
        gate = jax.nn.sigmoid(self.gate_k * (self.gate_tau - (first - second)))
        return jax.lax.stop_gradient(self.alpha_lo + (self.alpha_hi - self.alpha_lo) * gate)


Blend = BlendMode | Channel | Confidence
"""How a seed's output joins its slot's input."""


class BlendSchedule(NamedTuple):
    """How alpha rises from 0 to 1.

    Attributes:
      method: i32[], index into `METHODS`.
      start: f32[], fraction of the blend at which alpha leaves 0.
      end: f32[], fraction from which alpha is 1; not before `start`.
    """

    method: Int32[Array, "*slots"]
    start: Float32[Array, "*slots"]
    end: Float32[Array, "*slots"]


def alpha_at(schedule: BlendSchedule, progress: Float32[Array, ""]) -> Float32[Array, ""]:
    """Alpha (f32[]) after the fraction `progress` (f32[]) of the blend.

    With u running from 0 at the start to 1 at the end: linear is u, cosine is
    (1 − cos πu)/2, warmup_hold rises linearly over the first half and holds 1 from there.
    """
    span = schedule.end - schedule.start
    u = jnp.clip((progress - schedule.start) / jnp.where(span > 0, span, 1), 0, 1)
    shapes = jnp.stack([u, (1 - jnp.cos(jnp.pi * u)) / 2, jnp.minimum(2 * u, 1)])
    return jnp.where(progress >= schedule.end, 1, shapes[schedule.method])


def blend_metrics(blend: Blend) -> dict[str, float]:
    """The mode's numbers as a seed's metrics, by which commands are annotated with the mode.

    They are ``alpha_vec/<channel>`` or ``gate_k``, ``gate_tau``, ``alpha_lo``, ``alpha_hi``.
    """
    match blend:
        case Channel(shares):
            return {f"alpha_vec/{channel}": share for channel, share in enumerate(shares)}
        case Confidence():
            return asdict(blend)
        case _:
            return {}


def mix(
    blend: Blend, x: Shaped[Array, "*shape"], y: Shaped[Array, "*shape"], alpha: Float32[Array, ""]
) -> Shaped[Array, "*shape"]:
    """The slot's output for α > 0, as the head of this module says; computed in x's dtype.

    Raises:
      ConfigurationError: the mode does not fit the number of channels of x.
    """
    share = (alpha * _share(blend, x)).astype(x.dtype)
    if blend is BlendMode.RESIDUAL:
        return x + share * y
    return (1 - share) * x + share * y


def _share(blend: Blend, x: jax.Array) -> jax.Array:
    """The seed's share at α = 1, which broadcasts against x."""
    channels = x.shape[-1] if x.ndim else 0
    match blend:
        case Channel(shares):
            if len(shares) != channels:
                raise ConfigurationError(
                    f"alpha_vec has {len(shares)} shares and the slot's input {channels} "
                    "channels; give one share per channel",
                    expected=channels,
                    actual=len(shares),
                )
            return jnp.array(shares, jnp.float32).reshape((1,) * (x.ndim - 1) + (channels,))
        case Confidence():
            if channels < 2:
                raise ConfigurationError(
                    f"the slot's input has {channels} channels; confidence is a margin between "
                    "two logits",
                    actual=channels,
                )
            return blend.share(x.astype(jnp.float32))
        case _:
            return jnp.float32(1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply_gated(
    branch: Callable[[Any, Any, jax.Array, jax.Array], jax.Array],
    params: Any,  # noqa: ANN401 - any pytree of arrays
    selector: Any,  # noqa: ANN401 - any pytree of integer arrays
    alpha: Float32[Array, ""],
    x: Shaped[Array, "*shape"],
) -> Shaped[Array, "*shape"]:
    """``branch(params, selector, alpha, x)`` where alpha > 0, and exactly x where it is not.

    At alpha = 0 the cotangent of x is the output's own, bit for bit, and that of `params` is
    zero, whatever the branch holds. Alpha itself is a schedule and receives no gradient.
    """
    return jnp.where(alpha > 0, branch(params, selector, alpha, x), x)


def _apply_gated_forward(
    branch: Callable[..., jax.Array],
    params: Any,  # noqa: ANN401
    selector: Any,  # noqa: ANN401
    alpha: jax.Array,
    x: jax.Array,
) -> tuple[jax.Array, tuple[Callable[[jax.Array], Any], jax.Array]]:
    y, pull = jax.vjp(lambda p, v: branch(p, selector, alpha, v), params, x)
    return jnp.where(alpha > 0, y, x), (pull, alpha)


def _apply_gated_backward(
    branch: Callable[..., jax.Array],
    residuals: tuple[Callable[[jax.Array], Any], jax.Array],
    cotangent: jax.Array,
) -> tuple[Any, None, None, jax.Array]:
    del branch
    pull, alpha = residuals
    open_ = alpha > 0
    for_params, for_x = pull(cotangent)
    for_params = jax.tree.map(lambda g: jnp.where(open_, g, jnp.zeros_like(g)), for_params)
    return for_params, None, None, jnp.where(open_, for_x, cotangent)


apply_gated.defvjp(_apply_gated_forward, _apply_gated_backward)
