"""The lifecycle of a seed, and how alpha rises."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamiyo_jax import growth
from tamiyo_jax.config import PolicyConfig
from tamiyo_jax.contracts import SeedOperation, SeedStage
from tamiyo_jax.errors import IllegalTransitionError

LEGAL = {
    (SeedStage.DORMANT, SeedOperation.GERMINATE): SeedStage.GERMINATED,
    (SeedStage.GERMINATED, SeedOperation.START_TRAINING): SeedStage.TRAINING,
    (SeedStage.TRAINING, SeedOperation.START_GRAFTING): SeedStage.BLENDING,
    (SeedStage.BLENDING, SeedOperation.STABILIZE): SeedStage.PROBATIONARY,
    (SeedStage.PROBATIONARY, SeedOperation.FOSSILIZE): SeedStage.FOSSILIZED,
    (SeedStage.GERMINATED, SeedOperation.CULL): SeedStage.CULLED,
    (SeedStage.TRAINING, SeedOperation.CULL): SeedStage.CULLED,
    (SeedStage.BLENDING, SeedOperation.CULL): SeedStage.CULLED,
    (SeedStage.PROBATIONARY, SeedOperation.CULL): SeedStage.CULLED,
}
TIMING = growth.Timing(blend_steps=10, embargo_steps=3)


@pytest.mark.parametrize("stage", list(SeedStage))
@pytest.mark.parametrize("operation", list(SeedOperation))
def test_an_operation_leads_where_the_table_says_and_every_other_is_refused(stage, operation):
    state = growth.enter(growth.dormant(), stage)
    if (stage, operation) in LEGAL:
        moved = growth.transition(state, operation)
        assert int(moved.stage) == LEGAL[stage, operation]
        assert int(moved.stage_steps) == 0
        assert float(moved.alpha) == (
            1.0
            if moved.stage >= SeedStage.PROBATIONARY and moved.stage <= SeedStage.FOSSILIZED
            else 0.0
        )
    else:
        with pytest.raises(IllegalTransitionError) as caught:
            growth.transition(state, operation)
        assert caught.value.stage == stage


def test_a_culled_seed_comes_home_on_the_hosts_clock_alone():
    state = growth.enter(growth.dormant(), SeedStage.CULLED)
    passed = []
    for _ in range(6):
        state = jax.jit(growth.tick, static_argnums=1)(state, TIMING)
        passed.append(SeedStage(int(state.stage)).name)
    assert passed == ["EMBARGOED", "EMBARGOED", "EMBARGOED", "RESETTING", "DORMANT", "DORMANT"]
    assert int(state.age_steps) == 0


@pytest.mark.parametrize("stage", [SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.FOSSILIZED])
def test_time_alone_moves_no_other_stage(stage):
    state = growth.enter(growth.dormant(), stage)
    for _ in range(50):
        state = growth.tick(state, TIMING)
    assert int(state.stage) == stage
    assert int(state.age_steps) == 50


@given(
    method=st.integers(0, 2),
    ends=st.tuples(*[st.floats(0, 1, width=32, allow_subnormal=False)] * 2),
)
def test_alpha_rises_from_0_before_the_start_to_1_from_the_end_on(method, ends):
    start, end = sorted(ends)
    schedule = growth.BlendSchedule(jnp.int32(method), jnp.float32(start), jnp.float32(end))
    progress = jnp.linspace(0, 1, 33, dtype=jnp.float32)
    alphas = np.asarray(jax.vmap(lambda p: growth.alpha_at(schedule, p))(progress))
    assert np.all(np.diff(alphas) >= 0)
    assert np.all(alphas[np.asarray(progress) < np.float32(start)] == 0)
    assert np.all(alphas[np.asarray(progress) >= np.float32(end)] == 1)


@pytest.mark.parametrize(("method", "expected"), [(0, 0.25), (1, 0.14644662), (2, 0.5)])
def test_each_method_has_its_shape(method, expected):
    schedule = growth.BlendSchedule(jnp.int32(method), jnp.float32(0.5), jnp.float32(0.9))
    np.testing.assert_allclose(growth.alpha_at(schedule, jnp.float32(0.6)), expected, rtol=1e-5)


def test_methods_are_indexed_as_the_policy_indexes_them():
    assert PolicyConfig().blending_methods == growth.METHODS
