"""Families of learning tasks: what the environment trains its hosts on.

A task is drawn with NumPy from its family and a seed: data, label noise, and a learning rate that
is sometimes far too high. `TRAINING` families are for learning and for every choice that is made
while learning; `HELD_OUT` families are for the final table alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.learn._architecture import Architecture, Batch

__all__ = ["HELD_OUT", "TRAINING", "Family", "TaskData", "draw", "draw_many", "find_family"]

INPUTS = 16
CLASSES = 10
VALIDATION, TEST = 128, 512
HIGH_RATE_SHARE = 0.2

NARROW = Architecture("narrow", INPUTS, (6, 6), CLASSES, examples=192, batch_size=16, epochs=24)
CURVES = Architecture(
    "curves", 40, (8, 8, 8), CLASSES, examples=768, batch_size=32, epochs=30, convolution=True
)

Examples = tuple[np.ndarray, np.ndarray]
Make = Callable[[np.random.Generator, int], Examples]


class TaskData(NamedTuple):
    """One task as arrays; `draw_many` puts a leading axis before each.

    Attributes:
      train: N examples to learn from.
      validation: examples that packets report on.
      test: examples that no policy sees; the objective is measured on them.
      learning_rate: f32[], of the host's optimiser.
    """

    train: Batch
    validation: Batch
    test: Batch
    learning_rate: jax.Array


class Family(NamedTuple):
    """Tasks of one kind.

    Attributes:
      name: the family.
      architecture: of its hosts.
      make: ``(generator, count) -> (inputs f32[count, D], labels i32[count])``.
      noise: largest share of training and validation labels that are drawn at random.
      rates: least and greatest learning rate, uniform in its logarithm.
    """

    name: str
    architecture: Architecture
    make: Make
    noise: float
    rates: tuple[float, float]


def _lift(generator: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Points f64[n, d] in 16 dimensions, by a random linear map with a little noise."""
    lifted = points @ generator.normal(size=(points.shape[1], INPUTS))
    return lifted + 0.05 * generator.normal(size=lifted.shape)


def _digits(generator: np.random.Generator, count: int) -> Examples:
    images, labels = _scans()
    kept = generator.permutation(CLASSES)[: generator.integers(6, CLASSES + 1)]
    rows = generator.permutation(np.flatnonzero(np.isin(labels, kept)))[:count]
    return images[rows], labels[rows]


@cache
def _scans() -> Examples:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError(
            "the digits come with scikit-learn, which is not installed; install tamiyo_jax[demo]",
            extra="demo",
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    pooled = pixels.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, INPUTS)
    return pooled / 8 - 1, labels


def _moons(generator: np.random.Generator, count: int) -> Examples:
    labels = generator.integers(0, 2, count)
    angle = np.pi * generator.random(count)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(labels[:, None] == 1, np.array([1.0, 0.5]) - points, points)
    return _lift(generator, points + 0.12 * generator.normal(size=points.shape)), labels


def _spirals(generator: np.random.Generator, count: int) -> Examples:
    arms = int(generator.integers(2, 5))
    labels = generator.integers(0, arms, count)
    radius = np.sqrt(generator.random(count))
    angle = 5.0 * radius + 2 * np.pi * labels / arms
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _lift(generator, 1.5 * points + 0.05 * generator.normal(size=points.shape)), labels


def _teacher(generator: np.random.Generator, count: int) -> Examples:
    hidden, classes = int(generator.integers(8, 25)), int(generator.integers(3, 7))
    inputs = generator.normal(size=(count, INPUTS))
    first = generator.normal(size=(INPUTS, hidden)) / 2
    second = generator.normal(size=(hidden, classes))
    return inputs, np.argmax(np.tanh(inputs @ first) @ second, axis=1)


def _images(generator: np.random.Generator, count: int) -> Examples:
    """Images of 4×4: a row, a column, a diagonal, a square or a cross, anywhere."""
    labels = generator.integers(0, 5, count)
    images = np.zeros((count, 4, 4))
    for image, label in zip(images, labels, strict=True):
        y, x = generator.integers(0, 4, 2)
        if label in (0, 4):
            image[y, :] = 1
        if label in (1, 4):
            image[:, x] = 1
        if label == 2:
            image[np.arange(4), (np.arange(4) + x) % 4] = 1
        if label == 3:
            image[np.ix_([y, (y + 1) % 4], [x, (x + 1) % 4])] = 1
    flat = images.reshape(count, INPUTS)
    return 2 * flat - 1 + 0.4 * generator.normal(size=flat.shape), labels


def _sequences(generator: np.random.Generator, count: int) -> Examples:
    """Sixteen points of a sine, a square, a sawtooth, a pulse or a chirp of any phase."""
    labels = generator.integers(0, 5, count)
    phase = generator.random((count, 1))
    cycles = generator.uniform(1.0, 2.0, (count, 1))
    time = cycles * np.linspace(0, 1, INPUTS)[None, :] + phase
    part = time % 1.0
    shapes = np.stack(
        [
            np.sin(2 * np.pi * time),
            np.where(part < 0.5, 1.0, -1.0),
            2 * part - 1,
            np.where(part < 0.15, 2.0, -0.3),
            np.sin(2 * np.pi * time**2),
        ]
    )
    chosen = shapes[labels, np.arange(count)]
    return 1.2 * chosen + 0.2 * generator.normal(size=chosen.shape), labels


def _rings(generator: np.random.Generator, count: int) -> Examples:
    """Held out: which of four shells around the origin of three dimensions a point lies in."""
    labels = generator.integers(0, 4, count)
    direction = generator.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 0.4 + 0.5 * labels + 0.08 * generator.normal(size=count)
    return _lift(generator, radius[:, None] * direction), labels


def _board(generator: np.random.Generator, count: int) -> Examples:
    """Held out: the colours of a board of 3×3 fields, in three colours."""
    points = generator.uniform(0, 3, (count, 2))
    fields = np.floor(points).astype(np.int64)
    return _lift(generator, points - 1.5), (fields[:, 0] + fields[:, 1]) % 3


def _parity(generator: np.random.Generator, count: int) -> Examples:
    """Held out: the parity of three of sixteen signs."""
    signs = generator.choice([-1.0, 1.0], (count, INPUTS))
    labels = (np.prod(signs[:, generator.permutation(INPUTS)[:3]], axis=1) > 0).astype(np.int64)
    return signs + 0.3 * generator.normal(size=signs.shape), labels


def _mnist1d(generator: np.random.Generator, count: int) -> Examples:
    """Held out: MNIST-1D (Greydanus and Kobak 2020, arXiv:2011.14439)."""
    inputs, labels = _curves()
    rows = generator.permutation(len(labels))[:count]
    return inputs[rows], labels[rows]


@cache
def _curves() -> Examples:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise ConfigurationError(
            "MNIST-1D comes with the package mnist1d, which is not installed; pip install mnist1d",
            extra="dev",
        ) from error
    drawn = make_dataset(get_dataset_args())
    inputs = np.concatenate([drawn["x"], drawn["x_test"]])
    return inputs, np.concatenate([drawn["y"], drawn["y_test"]])


RATES = (4e-3, 3e-2)

TRAINING: Mapping[str, Family] = {
    name: Family(name, NARROW, make, noise, RATES)
    for name, make, noise in (
        ("digits", _digits, 0.1),
        ("moons", _moons, 0.1),
        ("spirals", _spirals, 0.05),
        ("teacher", _teacher, 0.1),
        ("images", _images, 0.1),
        ("sequences", _sequences, 0.1),
    )
}
"""Families to learn on."""

HELD_OUT: Mapping[str, Family] = {
    "mnist1d": Family("mnist1d", CURVES, _mnist1d, 0.0, RATES),
    **{
        name: Family(name, NARROW, make, noise, RATES)
        for name, make, noise in (
            ("rings", _rings, 0.05),
            ("board", _board, 0.05),
            ("parity", _parity, 0.05),
        )
    },
}
"""Families for the final table alone."""


def find_family(name: str) -> Family:
    """The family of that name.

    Raises:
      ConfigurationError: there is none.
    """
    families = {**TRAINING, **HELD_OUT}
    if name not in families:
        raise ConfigurationError(
            f"family is {name!r}; the families are {', '.join(families)}",
            field="family",
            value=name,
        )
    return families[name]


def draw(family: Family, seed: int) -> TaskData:
    """One task of a family; the same for the same seed.

    Raises:
      ConfigurationError: the package that ships the family's data is not installed.
    """
    generator = np.random.default_rng([seed, sum(family.name.encode())])
    count = family.architecture.examples
    inputs, labels = family.make(generator, count + VALIDATION + TEST)
    labels = labels.astype(np.int32)
    seen = count + VALIDATION
    noisy = generator.random(seen) < generator.uniform(0, family.noise)
    wrong = generator.choice(np.unique(labels), seen)
    labels[:seen] = np.where(noisy, wrong, labels[:seen])
    rate = np.exp(generator.uniform(*np.log(family.rates)))
    if generator.random() < HIGH_RATE_SHARE:
        rate *= 20
    parts = (slice(0, count), slice(count, seen), slice(seen, None))
    train, validation, test = (
        Batch(jnp.asarray(inputs[part], jnp.float32), jnp.asarray(labels[part])) for part in parts
    )
    return TaskData(train, validation, test, jnp.float32(rate))


def draw_many(families: list[Family], seeds: list[int]) -> TaskData:
    """Tasks of families of one architecture with a leading axis, the i-th of the i-th seed."""
    tasks = [draw(family, seed) for family, seed in zip(families, seeds, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
