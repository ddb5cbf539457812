"""What the families' data are: makers of inputs and labels.

A maker draws what a task is (templates, maps, numbers of classes) and then its examples, so that
two tasks of a family differ in more than their examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from tamiyo_jax.errors import ConfigurationError

__all__ = [
    "CLASSES",
    "INPUTS",
    "Make",
    "board",
    "clusters",
    "digits",
    "faint",
    "images",
    "long_motifs",
    "mnist1d",
    "moons",
    "parity",
    "rings",
    "sequences",
    "short_motifs",
    "spirals",
    "teacher",
    "tones",
]

INPUTS = 16
CLASSES = 10

Examples = tuple[np.ndarray, np.ndarray]
Make = Callable[[np.random.Generator, int], Examples]
"""``(generator, count) -> (inputs f32[count, D], labels i32[count])``."""


def _lift(generator: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """Points f64[n, d] in 16 dimensions, by a random linear map with a little noise."""
    lifted = points @ generator.normal(size=(points.shape[1], INPUTS))
    return lifted + 0.05 * generator.normal(size=lifted.shape)


def digits(generator: np.random.Generator, count: int) -> Examples:
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


def moons(generator: np.random.Generator, count: int) -> Examples:
    labels = generator.integers(0, 2, count)
    angle = np.pi * generator.random(count)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(labels[:, None] == 1, np.array([1.0, 0.5]) - points, points)
    return _lift(generator, points + 0.12 * generator.normal(size=points.shape)), labels


def spirals(generator: np.random.Generator, count: int) -> Examples:
    arms = int(generator.integers(2, 5))
    labels = generator.integers(0, arms, count)
    radius = np.sqrt(generator.random(count))
    angle = 5.0 * radius + 2 * np.pi * labels / arms
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return _lift(generator, 1.5 * points + 0.05 * generator.normal(size=points.shape)), labels


def teacher(generator: np.random.Generator, count: int) -> Examples:
    hidden, classes = int(generator.integers(8, 25)), int(generator.integers(3, 7))
    inputs = generator.normal(size=(count, INPUTS))
    first = generator.normal(size=(INPUTS, hidden)) / 2
    second = generator.normal(size=(hidden, classes))
    return inputs, np.argmax(np.tanh(inputs @ first) @ second, axis=1)


def images(generator: np.random.Generator, count: int) -> Examples:
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


def sequences(generator: np.random.Generator, count: int) -> Examples:
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


def clusters(generator: np.random.Generator, count: int) -> Examples:
    """Clouds that overlap, two to each of three to six classes."""
    classes = int(generator.integers(3, 7))
    centres = generator.uniform(0.5, 1.0) * generator.normal(size=(classes, 2, INPUTS))
    labels = generator.integers(0, classes, count)
    chosen = centres[labels, generator.integers(0, 2, count)]
    return chosen + generator.normal(size=chosen.shape), labels


def faint(generator: np.random.Generator, count: int) -> Examples:
    """Labels that hang on the inputs by little more than chance: most of the loss has to stay."""
    classes = int(generator.integers(2, 5))
    inputs = generator.normal(size=(count, INPUTS))
    weights = generator.uniform(0.1, 0.6) * generator.normal(size=(INPUTS, classes))
    chances = inputs @ weights + generator.gumbel(size=(count, classes))
    return inputs, np.argmax(chances, axis=1)


def _smooth(generator: np.random.Generator, shape: tuple[int, ...], width: int) -> np.ndarray:
    """Random curves along the last axis, of mean 0 and deviation 1, smooth over `width` points."""
    kernel = np.hanning(width + 2)[1:-1]
    rough = generator.normal(size=(*shape[:-1], shape[-1] + width - 1))
    curves = np.apply_along_axis(lambda row: np.convolve(row, kernel, "valid"), -1, rough)
    curves -= curves.mean(axis=-1, keepdims=True)
    return curves / curves.std(axis=-1, keepdims=True)


def _placed(generator: np.random.Generator, motifs: np.ndarray, points: int) -> np.ndarray:
    """Motifs f64[n, m], each stretched by up to a half, somewhere in a sequence of `points`."""
    count, length = motifs.shape
    stretch = generator.uniform(0.75, 1.5, (count, 1))
    room = points - stretch * (length - 1)
    first = generator.random((count, 1)) * np.maximum(room, 0)
    where = (np.arange(points)[None, :] - first) / stretch
    low = np.clip(np.floor(where).astype(np.int64), 0, length - 2)
    share = where - low
    rows = np.arange(count)[:, None]
    found = (1 - share) * motifs[rows, low] + share * motifs[rows, low + 1]
    return np.where((where >= 0) & (where <= length - 1), found, 0.0)


def _motifs(points: int, generator: np.random.Generator, count: int) -> Examples:
    """A motif of each class anywhere in a sequence, at any size, under smooth and rough noise."""
    classes = int(generator.integers(3, CLASSES + 1))
    of_class = _smooth(generator, (classes, points // 3), int(generator.integers(2, 5)))
    labels = generator.integers(0, classes, count)
    placed = _placed(generator, of_class[labels], points)
    size = generator.uniform(0.7, 1.4, (count, 1))
    drift = generator.uniform(0.1, 0.5) * _smooth(generator, (count, points), points // 2)
    noise = generator.uniform(0.05, 0.4) * generator.normal(size=(count, points))
    return size * placed + drift + noise, labels


short_motifs = partial(_motifs, 24)
long_motifs = partial(_motifs, 36)


def tones(generator: np.random.Generator, count: int) -> Examples:
    """A burst of one of three to six frequencies, at any time and phase, in 24 points."""
    points, classes = 24, int(generator.integers(3, 7))
    cycles = np.sort(generator.uniform(1.0, 8.0, classes))
    labels = generator.integers(0, classes, count)
    time = np.linspace(0, 1, points)[None, :]
    phase = 2 * np.pi * generator.random((count, 1))
    burst = np.exp(-0.5 * ((time - generator.random((count, 1))) / 0.25) ** 2)
    tone = np.sin(2 * np.pi * cycles[labels][:, None] * time + phase)
    noise = generator.uniform(0.1, 0.4) * generator.normal(size=(count, points))
    return 1.5 * burst * tone + noise, labels


def rings(generator: np.random.Generator, count: int) -> Examples:
    """Held out: which of four shells around the origin of three dimensions a point lies in."""
    labels = generator.integers(0, 4, count)
    direction = generator.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 0.4 + 0.5 * labels + 0.08 * generator.normal(size=count)
    return _lift(generator, radius[:, None] * direction), labels


def board(generator: np.random.Generator, count: int) -> Examples:
    """Held out: the colours of a board of 3×3 fields, in three colours."""
    points = generator.uniform(0, 3, (count, 2))
    fields = np.floor(points).astype(np.int64)
    return _lift(generator, points - 1.5), (fields[:, 0] + fields[:, 1]) % 3


def parity(generator: np.random.Generator, count: int) -> Examples:
    """Held out: the parity of three of sixteen signs."""
    signs = generator.choice([-1.0, 1.0], (count, INPUTS))
    labels = (np.prod(signs[:, generator.permutation(INPUTS)[:3]], axis=1) > 0).astype(np.int64)
    return signs + 0.3 * generator.normal(size=signs.shape), labels


def mnist1d(generator: np.random.Generator, count: int) -> Examples:
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
