"""A network that has grown computes what it did, whatever it is made of."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import growable as models
import jax
import numpy as np
import pytest

from tamiyo_jax import expansion
from tamiyo_jax.errors import ConfigurationError

# Flax's normalisations mix dtypes.
pytestmark = pytest.mark.usefixtures("standard_promotion")


class Deepening(NamedTuple):
    """How a model of two blocks becomes one of more."""

    make: Any
    blocks: str
    outputs: tuple[str, ...]


PROJECT = ("project/kernel", "project/bias")
DECODER = ("attention/out/*", *PROJECT)
DEEPENINGS = {
    "an mlp in linen": Deepening(
        lambda n: models.linen(models.Mlp(blocks=n), models.vectors()), "block_{}", PROJECT
    ),
    "a convolutional net in linen": Deepening(
        lambda n: models.linen(models.ConvNet(blocks=n), models.images()), "block_{}", ("norm_1/*",)
    ),
    "a transformer in linen": Deepening(
        lambda n: models.linen(models.Decoder(blocks=n), models.tokens()), "block_{}", DECODER
    ),
    "a scanned transformer in linen": Deepening(
        lambda n: models.linen(models.Decoder(blocks=n, scanned=True), models.tokens()),
        "blocks",
        DECODER,
    ),
    "an mlp in nnx": Deepening(lambda n: models.nnx_mlp(blocks=n), "blocks/{}", PROJECT),
    "an mlp in equinox": Deepening(
        lambda n: models.eqx_mlp(blocks=n), "blocks/{}", ("project/weight", "project/bias")
    ),
    "a scanned mlp in equinox": Deepening(
        lambda n: models.eqx_mlp(blocks=n, scanned=True),
        "blocks",
        ("project/weight", "project/bias"),
    ),
}


BRIEF = ("an mlp in linen", "an mlp in nnx", "an mlp in equinox", "a scanned transformer in linen")


@cache
def make_model(name: str, blocks: int) -> models.Model:
    return DEEPENINGS[name].make(blocks)


def deepened(name: str, order: tuple[int | None, ...], share: float = 0.0):
    one, small, large = DEEPENINGS[name], make_model(name, 2), make_model(name, len(order))
    plan = expansion.deepen(
        small.params, large.params, blocks=one.blocks, order=order, outputs=one.outputs, share=share
    )
    return small, large, plan, carried_out(plan, small, large)


def carried_out(plan: expansion.Growth, small: models.Model, large: models.Model):
    grow = jax.jit(lambda params, fresh, key: expansion.grow_params(plan, params, fresh, key))
    return grow(small.params, large.params, jax.random.key(3))


@pytest.mark.parametrize("order", [(0, 1, 0, 1), (0, 0, 1, None)], ids=["stacked", "inserted"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in BRIEF else pytest.mark.slow) for name in DEEPENINGS],
)
def test_a_deeper_network_computes_what_it_did_and_all_of_it_learns(name, order):
    small, large, plan, grown = deepened(name, order)
    loss, gradient = jax.jit(jax.value_and_grad(large.loss))(grown)
    np.testing.assert_allclose(loss, small.loss(small.params), rtol=0, atol=1e-5)
    moving = jax.tree.map(
        lambda g, new: np.any((np.asarray(g) != 0) & np.asarray(new)),
        gradient,
        expansion.is_new(plan),
    )
    assert any(jax.tree.leaves(moving))


def test_plain_stacking_changes_the_function():
    small, large, _, grown = deepened("a transformer in linen", (0, 1, 0, 1), share=1.0)
    assert abs(float(large.loss(grown) - small.loss(small.params))) > 1e-3
    block = small.params["block_1"]
    jax.tree.map(np.testing.assert_array_equal, grown["block_3"], block)


HIDDEN = expansion.Dimension(
    made_by={"block_*/expand/kernel": -1, "block_*/expand/bias": 0},
    used_by={"block_*/project/kernel": 0},
    normalised=False,
)
NNX_HIDDEN = expansion.Dimension(
    made_by={"blocks/*/expand/kernel": -1, "blocks/*/expand/bias": 0},
    used_by={"blocks/*/project/kernel": 0},
    normalised=False,
)
EQX_HIDDEN = expansion.Dimension(
    made_by={"blocks/*/expand/weight": 0, "blocks/*/expand/bias": 0},
    used_by={"blocks/*/project/weight": 1},
    normalised=False,
)
CHANNELS = expansion.Dimension(
    made_by={"block_*/conv_0/kernel": -1, "block_*/conv_0/bias": 0, "block_*/norm_0/*": 0},
    used_by={"block_*/conv_1/kernel": 2},
    normalised=False,
)
IMAGE_STREAM = expansion.Dimension(
    made_by={
        "stem/kernel": -1,
        "stem/bias": 0,
        "block_*/conv_1/kernel": -1,
        "block_*/conv_1/bias": 0,
        "block_*/norm_1/*": 0,
    },
    used_by={"block_*/conv_0/kernel": 2, "head/kernel": 0},
    normalised=False,
)
HEADS = expansion.Dimension(
    made_by={f"*/attention/{projection}/{part}": axis for projection in ("query", "key", "value")
             for part, axis in (("kernel", -2), ("bias", -2))},
    used_by={"*/attention/out/kernel": -3},
    normalised=False,
)  # fmt: skip
STREAM = expansion.Dimension(
    made_by={
        "embedding/embedding": 1,
        "*/attention/out/kernel": -1,
        "*/attention/out/bias": -1,
        "*/project/kernel": -1,
        "*/project/bias": -1,
        "*norm*/scale": -1,
    },
    used_by={
        "*/attention/query/kernel": -3,
        "*/attention/key/kernel": -3,
        "*/attention/value/kernel": -3,
        "*/expand/kernel": -2,
        "head/kernel": 0,
    },
    normalised=True,
)
STACKED_HIDDEN = expansion.Dimension(
    made_by={"blocks/expand/kernel": -1, "blocks/expand/bias": -1},
    used_by={"blocks/project/kernel": 1},
    normalised=False,
)


def mlp(**sizes: int):
    return models.linen(models.Mlp(**sizes), models.vectors())


def convolutional(**sizes: int):
    return models.linen(models.ConvNet(**sizes), models.images())


def decoder(**sizes: Any):
    return models.linen(models.Decoder(**sizes), models.tokens())


WIDENINGS = {
    "hidden units of an mlp": (mlp(), mlp(width=9), [HIDDEN]),
    "hidden units in nnx": (models.nnx_mlp(), models.nnx_mlp(width=9), [NNX_HIDDEN]),
    "hidden units in equinox": (models.eqx_mlp(), models.eqx_mlp(width=9), [EQX_HIDDEN]),
    "channels inside convolutional blocks": (
        convolutional(), convolutional(channels=12), [CHANNELS],
    ),
    "channels of a convolutional net, flattened at its end": (
        convolutional(), convolutional(stream=7), [IMAGE_STREAM],
    ),
    "heads and hidden units of a transformer": (
        decoder(), decoder(heads=3, width=20), [HEADS, HIDDEN],
    ),
    "hidden units of scanned layers": (
        decoder(scanned=True), decoder(scanned=True, width=30), [STACKED_HIDDEN],
    ),
    "the normalised stream of a transformer": (
        decoder(), decoder(stream=3 * models.WIDTH, heads=4), [STREAM, HEADS],
    ),
    "everything in scanned layers": (
        decoder(scanned=True),
        decoder(scanned=True, stream=2 * models.WIDTH, heads=4, width=24),
        [STREAM, HEADS, STACKED_HIDDEN],
    ),
}  # fmt: skip


def widened(small, large, dimensions, noise: float):
    plan = expansion.widen(small.params, large.params, dimensions=dimensions, noise=noise)
    return plan, carried_out(plan, small, large)


@pytest.mark.parametrize("case", WIDENINGS.values(), ids=WIDENINGS)
def test_a_wider_network_computes_what_it_did(case):
    small, large, dimensions = case
    _, grown = widened(small, large, dimensions, noise=0.1)
    before, after = small.loss(small.params), large.loss(grown)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)


def test_noise_makes_copies_learn_different_things():
    small, large, dimensions = WIDENINGS["hidden units of an mlp"]
    for noise, differ in ((0.0, False), (0.1, True)):
        _, grown = widened(small, large, dimensions, noise)
        gradient = jax.jit(jax.grad(large.loss))(grown)["block_0"]["expand"]["kernel"]
        assert np.allclose(gradient[:, 0], gradient[:, 5], atol=1e-7) is not differ


def test_the_gradient_of_a_wider_network_is_what_its_moments_are_mapped_to():
    small, large, dimensions = WIDENINGS["everything in scanned layers"]
    plan, grown = widened(small, large, dimensions, noise=0.0)
    mapped = expansion.map_moments(plan, jax.jit(jax.grad(small.loss))(small.params), 1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        mapped,
        jax.jit(jax.grad(large.loss))(grown),
    )


def test_an_axis_that_no_dimension_names_is_an_error():
    small, large, _ = WIDENINGS["hidden units of an mlp"]
    named = expansion.Dimension(HIDDEN.made_by, {}, normalised=False)
    with pytest.raises(ConfigurationError, match="block_0/project/kernel has shape"):
        widened(small, large, [named], noise=0.1)


def test_a_normalised_stream_that_grows_by_no_whole_factor_is_an_error():
    with pytest.raises(ConfigurationError, match="grows by a whole factor"):
        widened(decoder(), decoder(stream=12), [STREAM], noise=0.1)


def test_a_pattern_that_names_nothing_is_an_error():
    wrong = HIDDEN._replace(used_by={"block_*/projection/kernel": 0})
    with pytest.raises(ConfigurationError, match="names nothing"):
        widened(mlp(), mlp(width=9), [wrong], noise=0.1)


@pytest.mark.parametrize("order", [(1, 0, 0, 1), (0, 0, 0, 0), (0, 1), (0, 1, 2, 1)])
def test_an_order_that_loses_or_moves_a_block_is_an_error(order):
    with pytest.raises(ConfigurationError, match="order is"):
        plan_mlp(order=order)


@pytest.mark.parametrize("wrong", [{"blocks": "layer_{}"}, {"outputs": ("out/kernel",)}])
def test_blocks_and_outputs_that_name_nothing_are_errors(wrong):
    with pytest.raises(ConfigurationError, match=r"no path begins so|name nothing"):
        plan_mlp(**wrong)


def plan_mlp(**changes: Any):
    name = "an mlp in linen"
    right = {"blocks": DEEPENINGS[name].blocks, "outputs": PROJECT, "order": (0, 1, 0, 1)}
    small, large = (make_model(name, blocks).params for blocks in (2, 4))
    return expansion.deepen(small, large, share=0.0, **right | changes)


def test_running_statistics_deepen_as_parameters_do():
    def statistics(blocks: int):
        module = models.ConvNet(blocks=blocks)
        return module.init(jax.random.key(0), models.images())["batch_stats"]

    small = models.shaken(statistics(2))
    large = statistics(4)
    plan = expansion.deepen(
        small, large, blocks="block_{}", order=(0, 1, 0, 1), outputs=(), share=0.0
    )
    grown = expansion.grow_params(plan, small, large, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, grown["block_3"], small["block_1"])
