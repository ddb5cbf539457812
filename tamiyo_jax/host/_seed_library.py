"""A library of seeds: candidate modules with the blueprints that describe them.

Each keeps shape and dtype of its input, acts on the last axis as the channels, and ends in a
layer that is zero at its initialisation. So it is made for a RESIDUAL slot, in which a fresh
seed changes nothing even at α = 1, like the residual branches of Goyal et al. (2017, §5.1) and
the adapters of Hu et al. (2021, §4.1).

    bottleneck-mlp    dense to C/4, GELU, dense back (Houlsby et al. 2019, §2)
    wide-mlp          dense to 4C, GELU, dense back (Vaswani et al. 2017, §3.3)
    low-rank          x A B of rank C/16, without bias (Hu et al. 2021, §4.1)
    normalisation     layer normalisation (Ba et al. 2016), scale 0
    separable-conv    3-wide depthwise convolution over all axes between batch and channels,
                      GELU, dense (Howard et al. 2017, §3.1)
    attention         layer normalisation, then self-attention over the axis before the
                      channels, in heads of at least 64 (Vaswani et al. 2017, §3.2)
    causal-attention  the same, in which no position sees a later one

What a blueprint says of layers, activations and parameters is `blueprint_of` the module at the
shape of its input. Its risk is our estimate: `PER_POSITION` for a seed that maps each position
by itself, `MIXING` for one that lets positions see one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax

from tamiyo_jax.contracts import Blueprint, BlueprintTier, ParameterSpec
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.growth import METHODS, Bank, Seed, linen_seed
from tamiyo_jax.host._blueprint_of import blueprint_of

__all__ = ["FAMILIES", "MIXING", "PER_POSITION", "SeedBank", "seed_bank"]

BOTTLENECK = 4
WIDENING = 4
RANK_SHARE = 16
KERNEL = 3
HEAD_WIDTH = 64

PER_POSITION = 0.1
MIXING = 0.2

_ZEROS = nn.initializers.zeros_init()


class Perceptron(nn.Module):
    """Dense, GELU, dense; `share` is the hidden width as a share of the channels."""

    share: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x[..., C] to an array like it."""
        channels = x.shape[-1]
        hidden = nn.Dense(max(1, int(self.share * channels)), dtype=x.dtype, name="hidden")(x)
        project = nn.Dense(channels, dtype=x.dtype, kernel_init=_ZEROS, name="project")
        return project(nn.gelu(hidden))


class LowRank(nn.Module):
    """Two matrices that meet in C/16 channels, or in one."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x[..., C] to an array like it."""
        channels = x.shape[-1]
        rank = max(1, channels // RANK_SHARE)
        reduced = nn.Dense(rank, use_bias=False, dtype=x.dtype, name="reduce")(x)
        project = nn.Dense(
            channels, use_bias=False, dtype=x.dtype, kernel_init=_ZEROS, name="project"
        )
        return project(reduced)


class Normalisation(nn.Module):
    """Layer normalisation over the channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x[..., C] to an array like it."""
        return nn.LayerNorm(dtype=x.dtype, scale_init=_ZEROS, name="scale")(x)


class SeparableConvolution(nn.Module):
    """Every channel by itself over space, GELU, then every position by itself."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x[B, ..., C] to an array like it."""
        channels = x.shape[-1]
        depthwise = nn.Conv(
            channels,
            (KERNEL,) * (x.ndim - 2),
            feature_group_count=channels,
            dtype=x.dtype,
            name="depthwise",
        )
        project = nn.Dense(channels, dtype=x.dtype, kernel_init=_ZEROS, name="project")
        return project(nn.gelu(depthwise(x)))


class Attention(nn.Module):
    """Layer normalisation and self-attention."""

    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map x[..., T, C] to an array like it."""
        channels = x.shape[-1]
        most = max(1, channels // HEAD_WIDTH)
        heads = max(n for n in range(1, most + 1) if channels % n == 0)
        normalised = nn.LayerNorm(dtype=x.dtype, name="norm")(x)
        mask = nn.make_causal_mask(x[..., 0], dtype=bool) if self.causal else None
        attend = nn.MultiHeadDotProductAttention(
            heads, dtype=x.dtype, out_kernel_init=_ZEROS, name="attend"
        )
        return attend(normalised, mask=mask)


_SEEDS: Mapping[str, tuple[nn.Module, float]] = {
    "bottleneck-mlp": (Perceptron(1 / BOTTLENECK), PER_POSITION),
    "wide-mlp": (Perceptron(WIDENING), PER_POSITION),
    "low-rank": (LowRank(), PER_POSITION),
    "normalisation": (Normalisation(), PER_POSITION),
    "separable-conv": (SeparableConvolution(), MIXING),
    "attention": (Attention(causal=False), MIXING),
    "causal-attention": (Attention(causal=True), MIXING),
}
"""Module and risk of each seed."""

_EVERYWHERE = ("bottleneck-mlp", "wide-mlp", "low-rank", "normalisation")


class Family(NamedTuple):
    """The seeds that make sense in one kind of network.

    Attributes:
      seeds: names in this library.
      axes: the fewest that a slot's input has, batch and channels included.
    """

    seeds: tuple[str, ...]
    axes: int


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "mlp": Family(_EVERYWHERE, 2),
        "convolution": Family(("separable-conv", *_EVERYWHERE), 3),
        "encoder": Family(("attention", *_EVERYWHERE), 3),
        "decoder": Family(("causal-attention", *_EVERYWHERE), 3),
    }
)
"""Kinds of networks: MLPs, convolutional nets, transformers that see whole sequences (encoder),
and transformers that predict what comes next (decoder), where a seed must not look ahead."""


class SeedBank(NamedTuple):
    """Candidates for a slot, and the blueprints that describe them to the controller.

    Attributes:
      bank: the modules by blueprint id.
      blueprints: their blueprints, in the order of the family; put them into the library, and
        name their ids in the packets' `candidate_blueprint_ids`.
    """

    bank: Bank
    blueprints: tuple[Blueprint, ...]


def seed_bank(family: str, x: jax.Array | jax.ShapeDtypeStruct) -> SeedBank:
    """The seeds of a family, for slots on activations like x.

    The modules take inputs of any width, so one bank can serve all slots of a network; the
    blueprints describe them at the width of x, so give the widest.

    Args:
      family: one of `FAMILIES`.
      x: an example of a slot's input, batch first and channels last: [B, C] for an MLP,
        [B, ..., C] with one to three axes between for a convolutional net, [B, T, C] for a
        transformer. Shape and dtype matter, values do not.

    Returns:
      Modules and blueprints; the id of each is its name and the width, as in ``wide-mlp-64``.

    Raises:
      ConfigurationError: there is no such family, or x has too few axes for it.
    """
    if family not in FAMILIES:
        raise ConfigurationError(
            f"family is {family!r}; the families are {', '.join(FAMILIES)}",
            field="family",
            value=family,
        )
    names, axes = FAMILIES[family]
    if x.ndim < axes:
        raise ConfigurationError(
            f"x has shape {x.shape}; a slot of family {family!r} has at least {axes} axes, batch "
            "first and channels last",
            field="x",
            value=x.shape,
        )
    bank = {f"{name}-{x.shape[-1]}": linen_seed(_SEEDS[name][0]) for name in names}
    blueprints = tuple(
        _blueprint(blueprint_id, seed, name, x)
        for name, (blueprint_id, seed) in zip(names, bank.items(), strict=True)
    )
    return SeedBank(bank, blueprints)


def _blueprint(
    blueprint_id: str, seed: Seed, name: str, x: jax.Array | jax.ShapeDtypeStruct
) -> Blueprint:
    params = jax.eval_shape(seed.init, jax.random.key(0), x)
    found = blueprint_of(params, seed.apply, x, blueprint_id=blueprint_id, risk=_SEEDS[name][1])
    return replace(
        found,
        name=name,
        tier=BlueprintTier.SAFE,
        layers=tuple(replace(layer, dropout_rate=0.0) for layer in found.layers),
        parameters=(ParameterSpec("alpha", 0.0, 1.0),),
        allowed_blending_methods=METHODS,
    )
