"""Thinning keeps what the eye would miss."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tamiyo_jax.report._thin import choose_rows, reduce_maxima, split_rows

series = arrays.arrays(
    np.float64,
    st.integers(1, 400),
    elements=st.floats(allow_nan=True, allow_infinity=True, width=32),
)


@given(series, st.integers(1, 20))
def test_first_last_and_extremes_of_every_run_are_kept(values: np.ndarray, buckets: int):
    kept = choose_rows([values], buckets)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    for part in np.split(np.arange(len(values)), split_rows(len(values), buckets)[1:]):
        finite = values[part][np.isfinite(values[part])]
        shown = values[np.intersect1d(part, kept)]
        assert {*finite[[finite.argmin(), finite.argmax()]]} <= set(shown) if len(finite) else True
        assert np.isfinite(values[part]).all() == np.isfinite(shown).all()


@given(series, st.integers(1, 20))
def test_a_thinned_series_is_not_longer_than_promised(values: np.ndarray, buckets: int):
    assert len(choose_rows([values], buckets)) <= max(2 * buckets, 6 * buckets)


@given(series, st.integers(1, 20))
def test_the_maximum_of_a_run_is_that_of_its_known_values(values: np.ndarray, buckets: int):
    starts = split_rows(len(values), buckets)
    known = np.where(np.isinf(values), np.nan, values)
    for part, most in zip(np.split(known, starts[1:]), reduce_maxima(known, starts), strict=True):
        if np.isnan(part).all():
            assert np.isnan(most)
        else:
            assert most == np.nanmax(part)
