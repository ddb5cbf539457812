"""Families of learning tasks: what the environment trains its hosts on.

A task is drawn with NumPy from its family and a seed: data, label noise, and a learning rate that
is sometimes far too high. `TRAINING` families are for learning and for every choice that is made
while learning; `HELD_OUT` families are for the final table alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.learn import _data
from tamiyo_jax.learn._architecture import Architecture, Batch
from tamiyo_jax.learn._data import CLASSES, INPUTS, Make

__all__ = ["HELD_OUT", "TRAINING", "Family", "TaskData", "draw", "draw_many", "find_family"]

VALIDATION, TEST = 128, 512
HIGH_RATE_SHARE = 0.2

NARROW = Architecture("narrow", INPUTS, (6, 6), CLASSES, examples=192, batch_size=16, epochs=24)
SHORT = Architecture(
    "short", 24, (6, 6), CLASSES, examples=192, batch_size=16, epochs=24, convolution=True
)
LONG = Architecture(
    "long", 36, (4, 6, 8), CLASSES, examples=256, batch_size=32, epochs=24, convolution=True
)
CURVES = Architecture(
    "curves", 40, (8, 8, 8), CLASSES, examples=768, batch_size=32, epochs=30, convolution=True
)


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
      distinct: least and greatest share of the training examples that are distinct; the others
        are copies of these, so that an epoch sees them more than once.
    """

    name: str
    architecture: Architecture
    make: Make
    noise: float
    rates: tuple[float, float]
    distinct: tuple[float, float] = (1.0, 1.0)


RATES = (4e-3, 3e-2)
ALL, FEW = (1.0, 1.0), (0.15, 0.6)

TRAINING: Mapping[str, Family] = {
    name: Family(name, architecture, make, noise, RATES, distinct)
    for name, architecture, make, noise, distinct in (
        ("digits", NARROW, _data.digits, 0.1, ALL),
        ("moons", NARROW, _data.moons, 0.1, ALL),
        ("spirals", NARROW, _data.spirals, 0.05, ALL),
        ("teacher", NARROW, _data.teacher, 0.1, ALL),
        ("images", NARROW, _data.images, 0.1, ALL),
        ("sequences", NARROW, _data.sequences, 0.1, ALL),
        ("clusters", NARROW, _data.clusters, 0.4, FEW),
        ("faint", NARROW, _data.faint, 0.0, FEW),
        ("tones", SHORT, _data.tones, 0.1, ALL),
        ("motifs", SHORT, _data.short_motifs, 0.1, ALL),
        ("few-motifs", SHORT, _data.short_motifs, 0.3, FEW),
        ("long-motifs", LONG, _data.long_motifs, 0.1, (0.3, 1.0)),
    )
}
"""Families to learn on."""

HELD_OUT: Mapping[str, Family] = {
    "mnist1d": Family("mnist1d", CURVES, _data.mnist1d, 0.0, RATES),
    **{
        name: Family(name, NARROW, make, noise, RATES)
        for name, make, noise in (
            ("rings", _data.rings, 0.05),
            ("board", _data.board, 0.05),
            ("parity", _data.parity, 0.05),
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
    if family.distinct != ALL:
        share = generator.uniform(*family.distinct)
        rows = np.arange(count) % max(1, round(share * count))
        inputs[:count], labels[:count] = inputs[rows], labels[rows]
    parts = (slice(0, count), slice(count, seen), slice(seen, None))
    train, validation, test = (
        Batch(jnp.asarray(inputs[part], jnp.float32), jnp.asarray(labels[part])) for part in parts
    )
    return TaskData(train, validation, test, jnp.float32(rate))


def draw_many(families: list[Family], seeds: list[int]) -> TaskData:
    """Tasks of families of one architecture with a leading axis, the i-th of the i-th seed."""
    tasks = [draw(family, seed) for family, seed in zip(families, seeds, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *tasks)
