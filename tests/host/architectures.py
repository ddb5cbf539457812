"""Six real architectures, each tiny: what `blueprint_of` is tested on.

All of them in Linen, the convolutional ones in NNX too, and a transformer in Equinox. Modules
have the names that a reader of the tests needs, and the same ones in every framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tamiyo_jax.contracts import Blueprint
from tamiyo_jax.host import blueprint_of


class Architecture(NamedTuple):
    """A model as `blueprint_of` takes it; no array of it exists."""

    params: Any
    apply_fn: Callable[[Any, Any], Any]
    example: Any

    @property
    def blueprint(self) -> Blueprint:
        return blueprint_of(*self, blueprint_id="model", risk=0.1)

    @property
    def parameter_count(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def images(channels: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.float32)


def tokens() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((2, 5), jnp.int32)


def linen(module: nn.Module, example: Any) -> Architecture:
    variables = jax.eval_shape(module.init, jax.random.key(0), example)

    def apply_fn(params: Any, x: Any) -> Any:
        # Statistics of batch normalisation are no parameters: constants of the forward pass.
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        constants = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), rest)
        return module.apply({"params": params, **constants}, x)

    return Architecture(variables["params"], apply_fn, example)


def in_nnx(make: Callable[[], nnx.Module], example: Any) -> Architecture:
    definition, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)

    def apply_fn(params: Any, x: Any) -> Any:
        constants = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), rest)
        return nnx.merge(definition, params, constants)(x)

    return Architecture(params, apply_fn, example)


# MLP.


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(4, name="hidden_0")(x))
        x = nn.relu(nn.Dense(3, name="hidden_1")(x))
        return nn.Dense(2, name="readout")(x)


def mlp() -> Architecture:
    return linen(Mlp(), jax.ShapeDtypeStruct((5, 6), jnp.float32))


# ResNet (He et al. 2016): a stem, a block with an identity shortcut, one with a projection.


class ResidualBlock(nn.Module):
    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        norm = {"use_running_average": True}
        strides = (self.stride, self.stride)
        y = nn.Conv(self.channels, (3, 3), strides, use_bias=False, name="conv_0")(x)
        y = nn.relu(nn.BatchNorm(name="norm_0", **norm)(y))
        y = nn.Conv(self.channels, (3, 3), use_bias=False, name="conv_1")(y)
        y = nn.BatchNorm(name="norm_1", **norm)(y)
        if self.stride > 1:
            x = nn.Conv(self.channels, (1, 1), strides, use_bias=False, name="shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="stem_norm")(x))
        x = ResidualBlock(4, name="block_0")(x)
        x = ResidualBlock(8, stride=2, name="block_1")(x)
        return nn.Dense(3, name="head")(jnp.mean(x, axis=(1, 2)))


def resnet() -> Architecture:
    return linen(ResNet(), images())


class NnxResidualBlock(nnx.Module):
    def __init__(self, inputs, channels, stride, rngs):
        strides = (stride, stride)
        options = {"use_bias": False, "rngs": rngs}
        self.conv_0 = nnx.Conv(inputs, channels, (3, 3), strides, **options)
        self.norm_0 = nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)
        self.conv_1 = nnx.Conv(channels, channels, (3, 3), **options)
        self.norm_1 = nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)
        if stride > 1:
            self.shortcut = nnx.Conv(inputs, channels, (1, 1), strides, **options)

    def __call__(self, x):
        y = nnx.relu(self.norm_0(self.conv_0(x)))
        y = self.norm_1(self.conv_1(y))
        return nnx.relu((self.shortcut(x) if hasattr(self, "shortcut") else x) + y)


class NnxResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.block_0 = NnxResidualBlock(4, 4, 1, rngs)
        self.block_1 = NnxResidualBlock(4, 8, 2, rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem_norm(self.stem(x)))
        x = self.block_1(self.block_0(x))
        return self.head(jnp.mean(x, axis=(1, 2)))


def nnx_resnet() -> Architecture:
    return in_nnx(lambda: NnxResNet(nnx.Rngs(0)), images())


# Vision transformer (Dosovitskiy et al. 2021): patches, a class token, positions, one block.


class EncoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y, y)
        y = nn.LayerNorm(name="norm_1")(x)
        return x + nn.Dense(6, name="project")(nn.gelu(nn.Dense(12, name="expand")(y)))


class Vit(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (4, 4), (4, 4), name="patches")(x)
        x = x.reshape(len(x), -1, 6)
        token = self.param("token", nn.initializers.zeros, (1, 1, 6))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 6)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(), (1, 5, 6))
        for index in range(2):
            x = EncoderBlock(name=f"block_{index}")(x)
        return nn.Dense(3, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


def vit() -> Architecture:
    return linen(Vit(), images())


# Decoder transformer (Touvron et al. 2023): tied embedding, RMS norms, causal attention,
# gated units.


class DecoderBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        mask = nn.make_causal_mask(x[..., 0], dtype=jnp.bool_)
        y = nn.RMSNorm(name="norm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(2, name="attention")(y, y, mask=mask)
        y = nn.RMSNorm(name="norm_1")(x)
        gate = nn.silu(nn.Dense(8, use_bias=False, name="gate")(y))
        up = nn.Dense(8, use_bias=False, name="up")(y)
        return x + nn.Dense(6, use_bias=False, name="down")(gate * up)


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embedding = nn.Embed(11, 6, name="embedding")
        x = embedding(tokens)
        for index in range(2):
            x = DecoderBlock(name=f"block_{index}")(x)
        return embedding.attend(nn.RMSNorm(name="norm")(x))


def decoder() -> Architecture:
    return linen(Decoder(), tokens())


class ScannedDecoder(nn.Module):
    """The same blocks, rematerialised, as one scanned stack."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, 6, name="embedding")(tokens)
        stack = nn.scan(
            lambda block, carry, _: (block(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        x, _ = stack(nn.remat(DecoderBlock)(name="blocks"), x, None)
        return nn.Dense(11, name="head")(x)


def scanned_decoder() -> Architecture:
    return linen(ScannedDecoder(), tokens())


# MLP-Mixer (Tolstikhin et al. 2021): perceptrons over patches, then over channels.


class MixerBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = jnp.swapaxes(nn.LayerNorm(name="norm_0")(x), 1, 2)
        y = nn.Dense(4, name="tokens_1")(nn.gelu(nn.Dense(5, name="tokens_0")(y)))
        x = x + jnp.swapaxes(y, 1, 2)
        y = nn.LayerNorm(name="norm_1")(x)
        return x + nn.Dense(6, name="channels_1")(nn.gelu(nn.Dense(7, name="channels_0")(y)))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (4, 4), (4, 4), name="patches")(x)
        x = MixerBlock(name="block")(x.reshape(len(x), -1, 6))
        x = jnp.mean(nn.LayerNorm(name="norm")(x), axis=1)
        return nn.Dense(3, name="head")(x)


def mixer() -> Architecture:
    return linen(Mixer(), images())


# U-Net (Ronneberger et al. 2015): two levels down, two up, each joined to its own level.


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        fine = nn.relu(nn.Conv(2, (3, 3), name="down_0")(x))
        coarse = nn.relu(nn.Conv(4, (3, 3), name="down_1")(nn.max_pool(fine, (2, 2), (2, 2))))
        x = nn.relu(nn.Conv(8, (3, 3), name="bottom")(nn.max_pool(coarse, (2, 2), (2, 2))))
        x = nn.ConvTranspose(4, (2, 2), (2, 2), name="up_1")(x)
        x = nn.relu(nn.Conv(4, (3, 3), name="join_1")(jnp.concatenate([x, coarse], axis=-1)))
        x = nn.ConvTranspose(2, (2, 2), (2, 2), name="up_0")(x)
        x = nn.relu(nn.Conv(2, (3, 3), name="join_0")(jnp.concatenate([x, fine], axis=-1)))
        return nn.Conv(1, (1, 1), name="mask")(x)


def unet() -> Architecture:
    return linen(UNet(), images(channels=3))


class NnxUNet(nnx.Module):
    def __init__(self, rngs):
        for name, kind, inputs, outputs, size in (
            ("down_0", nnx.Conv, 3, 2, 3),
            ("down_1", nnx.Conv, 2, 4, 3),
            ("bottom", nnx.Conv, 4, 8, 3),
            ("up_1", nnx.ConvTranspose, 8, 4, 2),
            ("join_1", nnx.Conv, 8, 4, 3),
            ("up_0", nnx.ConvTranspose, 4, 2, 2),
            ("join_0", nnx.Conv, 4, 2, 3),
            ("mask", nnx.Conv, 2, 1, 1),
        ):
            stride = 2 if kind is nnx.ConvTranspose else 1
            made = kind(inputs, outputs, (size, size), (stride, stride), rngs=rngs)
            setattr(self, name, made)

    def __call__(self, x):
        fine = nnx.relu(self.down_0(x))
        coarse = nnx.relu(self.down_1(nnx.max_pool(fine, (2, 2), (2, 2))))
        x = self.up_1(nnx.relu(self.bottom(nnx.max_pool(coarse, (2, 2), (2, 2)))))
        x = self.up_0(nnx.relu(self.join_1(jnp.concatenate([x, coarse], axis=-1))))
        x = nnx.relu(self.join_0(jnp.concatenate([x, fine], axis=-1)))
        return self.mask(x)


def nnx_unet() -> Architecture:
    return in_nnx(lambda: NnxUNet(nnx.Rngs(0)), images(channels=3))


# A transformer in Equinox, which has no batch axis and writes ``weight @ x``.


def equinox_transformer() -> Architecture:
    import equinox as eqx

    class Block(eqx.Module):
        norm_0: Any
        attention: Any
        norm_1: Any
        expand: Any
        project: Any

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.norm_0 = eqx.nn.LayerNorm(6)
            self.attention = eqx.nn.MultiheadAttention(2, 6, key=keys[0])
            self.norm_1 = eqx.nn.RMSNorm(6)
            self.expand = eqx.nn.Linear(6, 12, key=keys[1])
            self.project = eqx.nn.Linear(12, 6, key=keys[2])

        def __call__(self, x):
            y = jax.vmap(self.norm_0)(x)
            x = x + self.attention(y, y, y, mask=jnp.tri(len(x), dtype=jnp.bool_))
            y = jax.vmap(self.expand)(jax.vmap(self.norm_1)(x))
            return x + jax.vmap(self.project)(jax.nn.gelu(y))

    class Transformer(eqx.Module):
        embedding: Any
        blocks: list[Any]
        head: Any

        def __init__(self, key):
            keys = jax.random.split(key, 4)
            self.embedding = eqx.nn.Embedding(11, 6, key=keys[0])
            self.blocks = [Block(key) for key in keys[1:3]]
            self.head = eqx.nn.Linear(6, 11, key=keys[3])

        def __call__(self, tokens):
            x = jax.vmap(self.embedding)(tokens)
            for block in self.blocks:
                x = block(x)
            return jax.vmap(self.head)(x)

    params, static = eqx.partition(Transformer(jax.random.key(0)), eqx.is_inexact_array)
    return Architecture(
        params, lambda params, x: jax.vmap(eqx.combine(params, static))(x), tokens()
    )
