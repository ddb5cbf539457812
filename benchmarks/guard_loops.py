"""Five small training loops, each as a pure function of its seed, that faults can be put into.

A loop's batch is made from a key alone, so a whole run is one `lax.scan`, and runs go side by
side under `vmap`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

__all__ = ["LOOPS", "Batch", "Loop"]

Params = Any
Extra = Any
BATCH = 32


class Batch(NamedTuple):
    """Inputs and what the network is to make of them.

    Attributes:
      x: f32[B, …]; for text, the tokens as one-hot rows.
      y: f32[B, …].
      key: for what is random within the step.
    """

    x: jax.Array
    y: jax.Array
    key: jax.Array


@dataclass(frozen=True)
class Loop:
    """What is trained.

    Attributes:
      init: parameters, and state that is no parameter, from a key.
      draw: a batch from a key; reads the parameters where data depends on them.
      loss: of parameters, state and batch; also gives the next state.
      test: the held-out loss f32[] of parameters and state.
      rate: learning rate of Adam, a number or a schedule.
      watched: least spreads of further numbers that such a loop logs, by name; for the guard.
      measure: these numbers, of parameters and batch.
    """

    init: Callable[[jax.Array], tuple[Params, Extra]]
    draw: Callable[[jax.Array, Params], Batch]
    loss: Callable[[Params, Extra, Batch], tuple[jax.Array, Extra]]
    test: Callable[[Params, Extra], jax.Array]
    rate: Any
    watched: Mapping[str, float] = field(default_factory=dict)
    measure: Callable[[Params, Batch], dict[str, jax.Array]] = lambda params, batch: {}


_pixels, _labels = load_digits(return_X_y=True)
PIXELS = jnp.asarray(_pixels / 16, jnp.float32)
LABELS = jax.nn.one_hot(jnp.asarray(_labels), 10)
SPLIT = 1400
_text = inspect.getsource(inspect)[:40_000]
_alphabet = sorted(set(_text))
TEXT = jnp.asarray([_alphabet.index(letter) for letter in _text], jnp.int32)
LETTERS, CONTEXT = len(_alphabet), 16
TEXT_SPLIT = int(0.9 * len(_text))


def _digits(key: jax.Array, params: Params) -> Batch:
    del params
    picked, used = jax.random.split(key)
    index = jax.random.randint(picked, (BATCH,), 0, SPLIT)
    return Batch(PIXELS[index], LABELS[index], used)


class _Classifier(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(32)(x))
        return nn.Dense(10)(nn.relu(x))


def _classifier() -> Loop:
    model = _Classifier()

    def init(key: jax.Array) -> tuple[Params, Extra]:
        variables = model.init(key, PIXELS[:2], train=True)
        return variables["params"], variables["batch_stats"]

    def loss(params: Params, extra: Extra, batch: Batch) -> tuple[jax.Array, Extra]:
        variables = {"params": params, "batch_stats": extra}
        logits, new = model.apply(variables, batch.x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy(logits, batch.y).mean(), new["batch_stats"]

    def test(params: Params, extra: Extra) -> jax.Array:
        variables = {"params": params, "batch_stats": extra}
        logits: Any = model.apply(variables, PIXELS[SPLIT:], train=False)
        return optax.softmax_cross_entropy(logits, LABELS[SPLIT:]).mean()

    return Loop(init, _digits, loss, test, 3e-3)


class _Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nn.relu(nn.Conv(8, (3, 3), strides=2)(x.reshape(-1, 8, 8, 1)))
        mean, log_variance = jnp.split(nn.Dense(16)(hidden.reshape(len(x), -1)), 2, axis=-1)
        noise = jax.random.normal(key, mean.shape)
        code = nn.Dense(4 * 4 * 8)(mean + jnp.exp(log_variance / 2) * noise).reshape(-1, 4, 4, 8)
        out = nn.ConvTranspose(1, (3, 3), strides=(2, 2))(nn.relu(code))
        divergence = 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1)
        return out.reshape(len(x), -1), divergence


def _autoencoder() -> Loop:
    model = _Autoencoder()

    def bound(params: Params, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        logits, divergence = model.apply({"params": params}, x, key)  # pyright: ignore
        return (optax.sigmoid_binary_cross_entropy(logits, y).sum(-1) + divergence).mean()

    def draw(key: jax.Array, params: Params) -> Batch:
        batch = _digits(key, params)
        return batch._replace(y=batch.x)

    return Loop(
        lambda key: (model.init(key, PIXELS[:2], key)["params"], ()),
        draw,
        lambda params, extra, batch: (bound(params, batch.x, batch.y, batch.key), extra),
        lambda params, extra: bound(params, PIXELS[SPLIT:], PIXELS[SPLIT:], jax.random.key(0)),
        3e-3,
    )


class _Writer(nn.Module):
    @nn.compact
    def __call__(self, letters: jax.Array) -> jax.Array:
        places: Any = nn.Embed(CONTEXT, 32)(jnp.arange(CONTEXT))
        x = nn.Dense(32, use_bias=False)(letters) + places
        mask = nn.make_causal_mask(jnp.ones(letters.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x), mask=mask)
        x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(LETTERS)(nn.LayerNorm()(x))


def _writer() -> Loop:
    model = _Writer()

    def cut(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        piece = TEXT[start[:, None] + jnp.arange(CONTEXT + 1)]
        letters = jax.nn.one_hot(piece, LETTERS)
        return letters[:, :-1], letters[:, 1:]

    def draw(key: jax.Array, params: Params) -> Batch:
        del params
        start = jax.random.randint(key, (BATCH,), 0, TEXT_SPLIT - CONTEXT - 1)
        return Batch(*cut(start), key)

    def entropy(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, x)
        return optax.softmax_cross_entropy(logits, y).mean()

    held_out = cut(jnp.arange(TEXT_SPLIT, len(_text) - CONTEXT - 1, CONTEXT))
    return Loop(
        lambda key: (model.init(key, held_out[0][:2])["params"], ()),
        draw,
        lambda params, extra, batch: (entropy(params, batch.x, batch.y), extra),
        lambda params, extra: entropy(params, *held_out),
        optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, 2000, 3e-4),
    )


class _Denoiser(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        hidden = nn.silu(nn.Dense(64)(jnp.concatenate([x, level, jnp.cos(6 * level)], -1)))
        return nn.Dense(64)(nn.silu(nn.Dense(64)(hidden)))


def _diffusion() -> Loop:
    model = _Denoiser()

    def error(params: Params, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        level_key, noise_key = jax.random.split(key)
        level = jax.random.uniform(level_key, (len(x), 1))
        noise = jax.random.normal(noise_key, x.shape)
        shown = jnp.sqrt(1 - level) * (2 * x - 1) + jnp.sqrt(level) * noise
        found: Any = model.apply({"params": params}, shown, level)
        return jnp.mean((found - (2 * y - 1)) ** 2)

    def draw(key: jax.Array, params: Params) -> Batch:
        batch = _digits(key, params)
        return batch._replace(y=batch.x)

    return Loop(
        lambda key: (model.init(key, PIXELS[:2], PIXELS[:2, :1])["params"], ()),
        draw,
        lambda params, extra, batch: (error(params, batch.x, batch.y, batch.key), extra),
        lambda params, extra: error(params, PIXELS[SPLIT:], PIXELS[SPLIT:], jax.random.key(0)),
        2e-3,
    )


class _Actor(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nn.tanh(nn.Dense(32)(x))
        return nn.Dense(1)(hidden)[..., 0], nn.Dense(1)(nn.tanh(nn.Dense(32)(x)))[..., 0]


HORIZON, SPREAD, DISCOUNT = 16, 0.3, 0.95


def _ppo() -> Loop:
    """A point is pushed along a line to a target; PPO with a clipped ratio, a step per rollout."""
    model = _Actor()

    def apply(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return model.apply({"params": params}, x)  # pyright: ignore[reportReturnType]

    def rollout(key: jax.Array, params: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
        start, pushes = jax.random.split(key)
        state = jax.random.normal(start, (BATCH, 2))

        def step(state: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
            action = apply(params, state)[0] + SPREAD * jax.random.normal(key, (BATCH,))
            speed = 0.9 * state[:, 1] + 0.3 * jnp.clip(action, -2, 2)
            moved = jnp.stack([state[:, 0] + 0.3 * speed, speed], -1)
            return moved, (state, action, -jnp.abs(moved[:, 0]))

        _, seen = jax.lax.scan(step, state, jax.random.split(pushes, HORIZON))
        return seen

    def draw(key: jax.Array, params: Params) -> Batch:
        states, actions, rewards = rollout(key, params)

        def back(later: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
            value = reward + DISCOUNT * later
            return value, value

        _, returns = jax.lax.scan(back, jnp.zeros(BATCH), rewards, reverse=True)
        mean, value = apply(params, states)
        y = jnp.stack([actions, returns, mean, returns - value], -1)
        return Batch(states.reshape(-1, 2), y.reshape(-1, 4), key)

    def log_ratio(mean: jax.Array, batch: Batch) -> jax.Array:
        action, _, old, _ = batch.y.T
        return ((action - old) ** 2 - (action - mean) ** 2) / (2 * SPREAD**2)

    def measure(params: Params, batch: Batch) -> dict[str, jax.Array]:
        # An estimate of the divergence that is never negative (Schulman 2020).
        log = log_ratio(apply(params, batch.x)[0], batch)
        return {"approx_kl": jnp.mean(jnp.expm1(log) - log)}

    def loss(params: Params, extra: Extra, batch: Batch) -> tuple[jax.Array, Extra]:
        _, returns, _, advantage = batch.y.T
        mean, value = apply(params, batch.x)
        ratio = jnp.exp(log_ratio(mean, batch))
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        return -gain.mean() + 0.1 * jnp.mean((value - returns) ** 2), extra

    return Loop(
        lambda key: (model.init(key, jnp.zeros((1, 2)))["params"], ()),
        draw,
        loss,
        lambda params, extra: -rollout(jax.random.key(0), params)[2].mean(),
        1e-3,
        {"approx_kl": 0.01},
        measure,
    )


LOOPS: Mapping[str, Loop] = {
    "MLP with BatchNorm": _classifier(),
    "convolutional VAE": _autoencoder(),
    "small GPT": _writer(),
    "diffusion": _diffusion(),
    "PPO": _ppo(),
}
