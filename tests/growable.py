"""Networks that can be grown, each in several sizes: what the operators are tested on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

WIDTH = 8


class Model(NamedTuple):
    """A network and its parameters; `apply` takes both of any size that it was made for."""

    params: Any
    apply: Callable[[Any, jax.Array], jax.Array]
    example: jax.Array

    def loss(self, params: Any) -> jax.Array:
        """f32[], what is compared before and after growth."""
        return _loss(self.apply, params, self.example)


@partial(jax.jit, static_argnums=0)
def _loss(apply: Callable[[Any, jax.Array], jax.Array], params: Any, example: jax.Array):
    return jnp.mean(jnp.square(apply(params, example) - 1))


def shaken(params: Any) -> Any:
    """Parameters as after some training: no zeros, no equal biases."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            np.asarray(leaf) + 0.3 * draw.standard_normal(leaf.shape).astype(leaf.dtype)
        ),
        params,
    )


def vectors() -> jax.Array:
    return jax.random.normal(jax.random.key(7), (5, 6), jnp.float32)


def tokens() -> jax.Array:
    return jax.random.randint(jax.random.key(7), (3, 5), 0, 11)


def images() -> jax.Array:
    return jax.random.normal(jax.random.key(7), (3, 8, 8, 2), jnp.float32)


def linen(module: nn.Module, example: jax.Array) -> Model:
    variables = jax.jit(module.init)(jax.random.key(0), example)
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return module.apply({"params": params, **rest}, x)

    return Model(shaken(variables["params"]), apply, example)


class MlpBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm")(x)
        y = nn.gelu(nn.Dense(self.width, name="expand")(y))
        return x + nn.Dense(x.shape[-1], name="project")(y)


class Mlp(nn.Module):
    blocks: int = 2
    width: int = 5
    stream: int = WIDTH

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.stream, name="stem")(x)
        for index in range(self.blocks):
            x = MlpBlock(self.width, name=f"block_{index}")(x)
        return nn.Dense(2, name="head")(nn.LayerNorm(name="norm")(x))


class ConvBlock(nn.Module):
    channels: int

    @nn.compact
    def __call__(self, x):
        norm = {"use_running_average": True}
        y = nn.Conv(self.channels, (3, 3), name="conv_0")(x)
        y = nn.relu(nn.BatchNorm(name="norm_0", **norm)(y))
        y = nn.Conv(x.shape[-1], (3, 3), name="conv_1")(y)
        return nn.relu(x + nn.BatchNorm(name="norm_1", **norm)(y))


class ConvNet(nn.Module):
    blocks: int = 2
    channels: int = 5
    stream: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.stream, (3, 3), (4, 4), name="stem")(x))
        for index in range(self.blocks):
            x = ConvBlock(self.channels, name=f"block_{index}")(x)
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


class DecoderBlock(nn.Module):
    heads: int
    width: int

    @nn.compact
    def __call__(self, x, _=None):
        mask = nn.make_causal_mask(x[..., 0], dtype=jnp.bool_)
        y = nn.RMSNorm(name="norm_0")(x)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=4 * self.heads, name="attention"
        )
        x = x + attention(y, y, mask=mask)
        y = nn.RMSNorm(name="norm_1")(x)
        y = nn.Dense(x.shape[-1], name="project")(nn.gelu(nn.Dense(self.width, name="expand")(y)))
        return x + y, None


class Decoder(nn.Module):
    blocks: int = 2
    heads: int = 2
    width: int = 12
    stream: int = WIDTH
    scanned: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(11, self.stream, name="embedding")(tokens)
        if self.scanned:
            layers = nn.scan(
                DecoderBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.blocks,
            )
            x, _ = layers(self.heads, self.width, name="blocks")(x, None)
        else:
            for index in range(self.blocks):
                x, _ = DecoderBlock(self.heads, self.width, name=f"block_{index}")(x)
        return nn.Dense(11, name="head")(nn.RMSNorm(name="norm")(x))


class NnxBlock(nnx.Module):
    def __init__(self, stream: int, width: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(stream, rngs=rngs)
        self.expand = nnx.Linear(stream, width, rngs=rngs)
        self.project = nnx.Linear(width, stream, rngs=rngs)

    def __call__(self, x):
        return x + self.project(nnx.gelu(self.expand(self.norm(x))))


class NnxMlp(nnx.Module):
    def __init__(self, blocks: int, width: int, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Linear(6, WIDTH, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(WIDTH, width, rngs) for _ in range(blocks)])
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def nnx_mlp(blocks: int = 2, width: int = 5) -> Model:
    graph = nnx.graphdef(nnx.eval_shape(lambda: NnxMlp(blocks, width, nnx.Rngs(0))))
    params = jax.jit(lambda: nnx.state(NnxMlp(blocks, width, nnx.Rngs(0)), nnx.Param))()
    return Model(shaken(params), lambda params, x: nnx.merge(graph, params)(x), vectors())


class EqxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    expand: eqx.nn.Linear
    project: eqx.nn.Linear

    def __init__(self, width: int, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.expand = eqx.nn.Linear(WIDTH, width, key=first)
        self.project = eqx.nn.Linear(width, WIDTH, key=second)

    def __call__(self, x):
        return x + self.project(jax.nn.gelu(self.expand(self.norm(x))))


class EqxMlp(eqx.Module):
    stem: eqx.nn.Linear
    blocks: list[EqxBlock] | EqxBlock
    head: eqx.nn.Linear

    def __init__(self, blocks: int, width: int, scanned: bool) -> None:
        first, second, last = jax.random.split(jax.random.key(0), 3)
        keys = jax.random.split(second, blocks)
        self.stem = eqx.nn.Linear(6, WIDTH, key=first)
        self.blocks = (
            eqx.filter_vmap(lambda key: EqxBlock(width, key))(keys)
            if scanned
            else [EqxBlock(width, key) for key in keys]
        )
        self.head = eqx.nn.Linear(WIDTH, 2, key=last)

    def __call__(self, x):
        x = self.stem(x)
        if isinstance(self.blocks, list):
            for block in self.blocks:
                x = block(x)
            return self.head(x)
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, one: (eqx.combine(one, static)(x), None), x, arrays)
        return self.head(x)


def eqx_mlp(blocks: int = 2, width: int = 5, scanned: bool = False) -> Model:
    params, static = eqx.partition(EqxMlp(blocks, width, scanned), eqx.is_inexact_array)
    return Model(
        shaken(params), lambda params, x: jax.vmap(eqx.combine(params, static))(x), vectors()
    )
