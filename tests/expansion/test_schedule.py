"""When to grow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax import expansion
from tamiyo_jax.errors import ConfigurationError

POINTS = np.linspace(1.0, 10.0, 20)


def curve(floor: float, amplitude: float, exponent: float, scale: float = 1e12):
    losses = floor + amplitude * POINTS**-exponent
    return expansion.Curve((scale * POINTS).tolist(), losses.tolist())


def test_stages_begin_at_the_steps_of_their_list() -> None:
    found = [expansion.next_stage(step, (10, 20)) for step in (0, 9, 10, 19, 20, 99)]
    assert found == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("losses", "plateau"),
    [
        ([3.0, 2.0, 1.0, 0.9], False),
        ([1.0, 1.0, 1.0, 0.999], True),
        ([1.0, 1.0], False),  # nothing to compare with yet
        ([1.0, 2.0, 2.0, 0.5], False),
    ],
)
def test_a_plateau_is_what_hardly_improves_on_the_best(losses, plateau) -> None:
    assert expansion.on_plateau(losses, patience=3, improvement=0.01) is plateau


@given(
    floor=st.floats(0.1, 3),
    amplitude=st.floats(0.1, 3),
    exponent=st.sampled_from([0.1, 0.35, 0.5, 1.0, 1.5]),
)
def test_the_return_is_the_slope_of_the_law_that_made_the_curve(floor, amplitude, exponent) -> None:
    expected = exponent * amplitude * 10.0 ** (-exponent - 1) / 1e12
    found = expansion.marginal_return(curve(floor, amplitude, exponent))
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_a_curve_that_rises_has_no_return() -> None:
    assert expansion.marginal_return(curve(1.0, -0.5, 0.5)) == 0


def test_growing_returns_more_once_the_smaller_network_is_saturated() -> None:
    trial = curve(1.0, 0.2, 0.3, scale=1e11)
    assert not expansion.returns_more(curve(1.0, 200.0, 0.5), trial)
    assert expansion.returns_more(curve(2.0, 0.01, 0.5), trial)


@pytest.mark.parametrize("flops", [[1.0, 2.0], [0.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
def test_a_curve_that_cannot_be_fitted_is_an_error(flops) -> None:
    with pytest.raises(ConfigurationError, match="at least 3 points"):
        expansion.marginal_return(expansion.Curve(flops, [1.0] * len(flops)))
