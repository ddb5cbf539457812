"""The four modes in which a seed joins its host, above alpha 0 and at it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host.tiny_host import BANK
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax import growth
from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.contracts import Blueprint, SeedStage, SeedState
from tamiyo_jax.controller._blend_mode import blend_annotations
from tamiyo_jax.errors import ConfigurationError
from tamiyo_jax.growth._blending import mix

SHARES = (0.0, 0.25, 0.5, 1.0)
GATE = {"gate_k": 4.0, "gate_tau": 0.5, "alpha_lo": 0.1, "alpha_hi": 0.9}
BLENDS = [*growth.BlendMode, growth.Channel(SHARES), growth.Confidence(**GATE)]
X = jnp.array([[0.5, -1.0, 2.0, 0.25], [3.0, 3.0, -0.5, 0.0]], jnp.float32)
Y = jnp.array([[1.0, 1.0, -1.0, 4.0], [0.5, -2.0, 0.0, 1.0]], jnp.float32)


def confidence(x: np.ndarray) -> np.ndarray:
    """The share at alpha 1, written out once more."""
    chances = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    ordered = np.sort(chances, axis=-1)
    margin = ordered[:, -1:] - ordered[:, -2:-1]
    opened = 1 / (1 + np.exp(-GATE["gate_k"] * (GATE["gate_tau"] - margin)))
    return GATE["alpha_lo"] + (GATE["alpha_hi"] - GATE["alpha_lo"]) * opened


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_each_mode_is_its_formula(alpha):
    x, y = np.asarray(X), np.asarray(Y)
    expected = {
        growth.BlendMode.CONVEX: (1 - alpha) * x + alpha * y,
        growth.BlendMode.RESIDUAL: x + alpha * y,
        BLENDS[2]: (1 - alpha * np.array(SHARES)) * x + alpha * np.array(SHARES) * y,
        BLENDS[3]: x + alpha * confidence(x) * (y - x),
    }
    for blend, values in expected.items():
        np.testing.assert_allclose(mix(blend, X, Y, jnp.float32(alpha)), values, rtol=1e-5)


def test_the_surer_the_host_is_the_less_of_the_seed_there_is():
    logits = jnp.array([[9.0, 0.0], [1.0, 0.0], [0.0, 0.0]], jnp.float32)
    shares = growth.Confidence(gate_k=10.0, gate_tau=0.3, alpha_lo=0.0, alpha_hi=1.0).share(logits)
    assert shares.shape == (3, 1)
    sure, fair, torn = np.asarray(shares)[:, 0]
    assert sure < 0.01 < fair < 0.5 < 0.9 < torn


def test_the_gate_gives_the_host_no_reason_to_be_unsure():
    zero = jnp.zeros_like(X)
    slope = jax.grad(lambda x: jnp.sum(mix(BLENDS[3], x, zero, jnp.float32(1))))(X)
    np.testing.assert_allclose(
        slope, np.broadcast_to(1 - confidence(np.asarray(X)), X.shape), rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("blend", BLENDS, ids=lambda blend: type(blend).__name__ + str(blend)[:8])
def test_the_output_has_the_dtype_of_the_input_at_any_alpha(blend, dtype):
    bank = {"double": growth.Seed(lambda key, x: {}, lambda params, x: x + x)}
    for alpha in (0.0, 0.5):
        gate = growth.Gate(jnp.float32(alpha))
        y = growth.slot_apply(bank, {"double": {}}, gate, X.astype(dtype), mode=blend)
        assert y.dtype == dtype
        assert bool(jnp.all(jnp.isfinite(y)))


@jax.jit
def closed(poison, x, cotangent):
    """Output, gradient of x and gradients of the seeds in every mode, at alpha 0."""
    params = {"steep": {"W": jnp.full((4, 4), poison)}}
    gate = growth.Gate(jnp.float32(0))
    found = []
    for blend in BLENDS:
        slot = lambda p, x, blend=blend: growth.slot_apply(BANK, p, gate, x, mode=blend)  # noqa: E731
        y, pull = jax.vjp(slot, params, x)
        for_params, for_x = pull(cotangent)
        found.append((y, for_x, for_params))
    return found


FLOATS = st.lists(st.floats(width=32), min_size=4, max_size=4)


@given(poison=st.sampled_from([0.0, 1.0, np.inf, -np.inf, np.nan]), values=FLOATS, slopes=FLOATS)
def test_germinating_at_alpha_0_changes_no_bit_of_output_or_gradient(poison, values, slopes):
    x, cotangent = np.array([values], np.float32), np.array([slopes], np.float32)
    for y, for_x, for_params in closed(np.float32(poison), x, cotangent):
        np.testing.assert_array_equal(np.asarray(y).view("u4"), x.view("u4"))
        np.testing.assert_array_equal(np.asarray(for_x).view("u4"), cotangent.view("u4"))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(for_params))


@pytest.mark.parametrize("shares", [(), (0.5, 1.5), (float("nan"),)])
def test_shares_outside_0_to_1_are_refused(shares):
    with pytest.raises(ConfigurationError, match=r"alpha_vec is .* share in \[0, 1\]"):
        growth.Channel(shares)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gate_k": 0.0},
        {"gate_k": float("inf")},
        {"gate_tau": 1.5},
        {"alpha_lo": 0.95},
        {"alpha_hi": 1.5},
    ],
)
def test_a_gate_out_of_its_bounds_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="is no gate; keep"):
        growth.Confidence(**{**GATE, **wrong})


def test_a_mode_that_does_not_fit_the_slots_channels_is_refused():
    with pytest.raises(ConfigurationError, match=r"4 shares and the slot's input 2 channels"):
        mix(growth.Channel(SHARES), X[:, :2], Y[:, :2], jnp.float32(1))
    with pytest.raises(ConfigurationError, match="a margin between two logits"):
        mix(growth.Confidence(**GATE), X[:, :1], Y[:, :1], jnp.float32(1))


@pytest.mark.parametrize(
    ("blend", "expected"),
    [
        (growth.BlendMode.RESIDUAL, {"blend_mode": "CONVEX"}),
        (BLENDS[2], {"blend_mode": "CHANNEL", "alpha_vec_len": "4"}),
        (BLENDS[3], {"blend_mode": "CONFIDENCE", "gate_k": "4", "alpha_hi": "0.9"}),
    ],
)
def test_commands_are_annotated_with_the_mode_that_the_seeds_metrics_imply(blend, expected):
    seed = SeedState("slot", SeedStage.DORMANT, metrics=growth.blend_metrics(blend))
    said = blend_annotations(PolicyConfig(blend_annotations="CONVEX"), seed, Blueprint("host"))
    assert expected.items() <= said.items()
