"""Every seed of the library: a fresh one changes nothing, and its blueprint is correct."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tamiyo_jax import growth, host
from tamiyo_jax.config import GraphConfig
from tamiyo_jax.contracts import validate_blueprint
from tamiyo_jax.errors import ConfigurationError

SHAPES = {
    "mlp": (2, 64),
    "convolution": (2, 4, 4, 16),
    "encoder": (2, 5, 8),
    "decoder": (2, 5, 8),
}
CAPS = GraphConfig()


def example(family: str, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(1), SHAPES[family], jnp.float32).astype(dtype)


@cache
def bank_of(family: str):
    """The bank of a family and its parameters, for `example`."""
    made = host.seed_bank(family, example(family))
    init = jax.jit(lambda x: growth.slot_init(made.bank, jax.random.key(0), x))
    return made, init(example(family))


def shake(params):
    """Parameters after some training, as far as these tests care: none is zero."""
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1, leaf.dtype), params)


@pytest.mark.parametrize("family", host.FAMILIES)
def test_a_fresh_seed_changes_nothing_even_at_alpha_1_and_a_trained_one_does(family):
    x = example(family)
    made, params = bank_of(family)
    gate = growth.Gate(jnp.float32(1))
    for name in growth.blueprint_ids(made.bank):
        alone = {name: params[name]}
        apply = jax.jit(lambda params: growth.slot_apply(made.bank, params, gate, x))
        np.testing.assert_array_equal(apply(alone), x)
        y = apply(shake(alone))
        assert y.shape == x.shape
        assert bool(jnp.all(jnp.isfinite(y)))
        assert not np.allclose(y, x)


@pytest.mark.parametrize("family", host.FAMILIES)
def test_a_fresh_seed_can_learn(family):
    x = example(family)
    made, params = bank_of(family)
    for name, seed in made.bank.items():
        slope_of = jax.jit(jax.grad(lambda p, seed=seed: jnp.sum(seed.apply(p, x) * x)))
        slope = slope_of(params[name])
        assert any(np.any(leaf) for leaf in jax.tree.leaves(slope)), name


@pytest.mark.parametrize("family", host.FAMILIES)
def test_the_blueprint_counts_what_the_module_has(family):
    made, params = bank_of(family)
    assert [blueprint.blueprint_id for blueprint in made.blueprints] == list(made.bank)
    for blueprint in made.blueprints:
        validate_blueprint(
            blueprint,
            max_layers=CAPS.max_layers,
            max_activations=CAPS.max_activations,
            max_parameters=CAPS.max_parameters,
            max_edges=CAPS.max_edges,
        )
        leaves = jax.tree.leaves(params[blueprint.blueprint_id])
        counted = sum(layer.parameter_count for layer in blueprint.layers)
        assert counted == sum(leaf.size for leaf in leaves)
        assert {layer.layer_id for layer in blueprint.layers} == set(
            host.layer_names(params[blueprint.blueprint_id])
        )
        assert blueprint.selectable
        assert blueprint.effective_risk is not None


def test_the_blueprint_of_a_wide_perceptron_in_full():
    wide = host.seed_bank("mlp", example("mlp")).blueprints[1]
    assert wide.blueprint_id == "wide-mlp-64"
    assert [
        (layer.layer_id, layer.type, layer.activation, layer.parameter_count, layer.input_channels)
        for layer in wide.layers
    ] == [
        ("hidden", "dense", "gelu", 64 * 256 + 256, 64),
        ("project", "dense", "identity", 256 * 64 + 64, 256),
    ]
    assert [(edge.source, edge.target) for edge in wide.layer_edges] == [(0, 1)]
    assert [activation.type for activation in wide.activations] == ["gelu"]
    assert wide.allowed_blending_methods == growth.METHODS


def test_only_the_decoders_attention_is_blind_to_what_comes_next():
    for family, blind in (("encoder", False), ("decoder", True)):
        x = example(family)
        made, params = bank_of(family)
        name = made.blueprints[0].blueprint_id
        after = shake(params[name])
        later = x.at[:, 3:].multiply(-2.0)
        y, z = map(jax.jit(partial(made.bank[name].apply, after)), (x, later))
        assert np.allclose(y[:, :3], z[:, :3], atol=1e-6) is blind
        assert not np.allclose(y[:, 3:], z[:, 3:], atol=1e-6)


def test_one_bank_serves_slots_of_other_widths_and_numbers_of_axes():
    bank = host.seed_bank("convolution", example("convolution")).bank
    narrow = jnp.ones((2, 6, 4), jnp.float32)
    params = jax.eval_shape(lambda x: growth.slot_init(bank, jax.random.key(0), x), narrow)
    assert params["separable-conv-16"]["depthwise"]["kernel"].shape == (3, 1, 4)


@pytest.mark.usefixtures("standard_promotion")  # Flax's layer normalisation mixes dtypes.
@pytest.mark.parametrize("family", host.FAMILIES)
def test_a_network_of_half_precision_keeps_it(family):
    x = example(family, jnp.bfloat16)
    bank = host.seed_bank(family, x).bank
    # It refuses a candidate that changes the dtype.
    jax.eval_shape(lambda x: growth.slot_init(bank, jax.random.key(0), x), x)


def test_an_unknown_family_and_an_input_with_too_few_axes_are_refused():
    with pytest.raises(ConfigurationError, match="the families are mlp, convolution, encoder"):
        host.seed_bank("transformer", example("encoder"))
    with pytest.raises(ConfigurationError, match="'decoder' has at least 3 axes"):
        host.seed_bank("decoder", example("mlp"))
