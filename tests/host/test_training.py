"""Host and seeds train side by side, and a seed that never blended was never there."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host.tiny_host import BANK, SEED_ID, batch, loss, make_host, make_state, operate

from tamiyo_jax import growth, host
from tamiyo_jax.contracts import SeedOperation, SeedStage
from tamiyo_jax.errors import ConfigurationError

OP = SeedOperation
UP_TO_FOSSIL = (OP.GERMINATE, OP.START_TRAINING, OP.START_GRAFTING, OP.STABILIZE, OP.FOSSILIZE)
MADE = make_host()
STEP = jax.jit(lambda state, batch: host.train_step(MADE, state, batch))


def grown(stage: SeedStage, blueprint: int = 1) -> host.HostState:
    state = make_state(MADE)
    for operation in UP_TO_FOSSIL:
        if int(state.slots[SEED_ID].state.stage) == stage:
            return state
        state = operate(state, operation, blueprint)
    return state


def assert_identical(left, right) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_close(left, right) -> None:
    """Equal to rounding: programs with a seed and without it are compiled apart."""
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_key_of_either_kind_makes_the_same_run_and_its_checkpoint_comes_back(tmp_path):
    params = make_state(MADE).params
    old, new = (
        host.init_host(MADE, params, make(7)) for make in (jax.random.PRNGKey, jax.random.key)
    )
    jax.tree.map(np.testing.assert_array_equal, STEP(new, batch(0)), STEP(old, batch(0)))
    assert (new.rng.shape, new.rng.dtype) == ((2,), jnp.uint32)
    checkpoints = host.HostCheckpoints(tmp_path, MADE)
    checkpoints.save("good", new)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore("good", new), old)


def test_a_key_of_another_generator_is_refused_and_named():
    key = jax.random.key(0, impl="rbg")
    with pytest.raises(ConfigurationError, match=r"rbg.*threefry2x32"):
        host.init_host(MADE, make_state(MADE).params, key)


def test_a_seed_culled_before_it_blends_leaves_the_host_as_without_it():
    with_seed, without = make_state(MADE), make_state(MADE)
    schedule = {2: OP.GERMINATE, 4: OP.START_TRAINING, 12: OP.CULL}
    for index in range(20):
        if index in schedule:
            with_seed = operate(with_seed, schedule[index], 1)
        with_seed, seen = STEP(with_seed, batch(index))
        without, expected = STEP(without, batch(index))
        assert_close(seen.loss, expected.loss)
    assert_close(with_seed.params, without.params)
    assert_close(with_seed.opt_state, without.opt_state)


def test_a_training_seed_lowers_its_own_loss_while_the_output_stays_untouched():
    state = grown(SeedStage.TRAINING)
    validation = batch(1000)
    early = host.contribution(loss, state.params, state.slots, validation)[SEED_ID]
    for index in range(60):
        state, metrics = STEP(state, batch(index))
    late = host.contribution(loss, state.params, state.slots, validation)[SEED_ID]
    assert metrics.seed_gradient_norms[SEED_ID] > 0
    assert float(state.slots[SEED_ID].state.alpha) == 0
    assert late > early


def test_nothing_exists_of_candidates_that_did_not_germinate():
    assert make_state(MADE).slots[SEED_ID].params == {}
    for blueprint, name in enumerate(growth.blueprint_ids(BANK)):
        slot = grown(SeedStage.TRAINING, blueprint).slots[SEED_ID]
        assert list(slot.params) == [name]
        assert jax.tree.structure(slot.opt_state) == jax.tree.structure(
            MADE.seed_optimizer.init(slot.params)
        )


def test_weight_decay_and_momentum_do_not_act_on_a_seed_that_does_not_learn():
    state = grown(SeedStage.GERMINATED)
    before = state.slots[SEED_ID]
    after = STEP(state, batch(0))[0].slots[SEED_ID]
    assert_identical(after.params, before.params)
    assert_identical(after.opt_state, before.opt_state)


@pytest.mark.parametrize("field", ["paused", "breaker_open"])
def test_a_pause_or_an_open_breaker_freezes_the_seed_while_the_host_trains_on(field):
    state = grown(SeedStage.BLENDING)
    state, _ = STEP(state, batch(0))
    frozen = state._replace(**{field: jnp.bool_(True)})
    after, _ = STEP(frozen, batch(1))
    assert_identical(after.slots, frozen.slots)
    assert not np.array_equal(after.params["second"]["w"], frozen.params["second"]["w"])


def test_inf_in_a_seed_at_alpha_0_reaches_neither_loss_nor_host():
    state = grown(SeedStage.GERMINATED)
    slot = state.slots[SEED_ID]
    bad = slot._replace(params=jax.tree.map(lambda w: jnp.full_like(w, jnp.inf), slot.params))
    clean, clean_metrics = STEP(state, batch(0))
    after, metrics = STEP(state._replace(slots={SEED_ID: bad}), batch(0))
    assert_identical(metrics.loss, clean_metrics.loss)
    assert_identical(after.params, clean.params)


def test_a_culled_seed_is_gone_at_once_and_its_slot_comes_home_for_another():
    state = grown(SeedStage.TRAINING)
    for index in range(3):
        state, _ = STEP(state, batch(index))
    learned = state.slots[SEED_ID].params["steep"]["W"]
    state = operate(state, OP.CULL)
    assert (state.slots[SEED_ID].params, state.slots[SEED_ID].opt_state) == ({}, ())
    for index in range(MADE.timing.embargo_steps + 2):
        assert int(state.slots[SEED_ID].state.stage) != SeedStage.DORMANT
        state, _ = STEP(state, batch(index))
    assert int(state.slots[SEED_ID].state.stage) == SeedStage.DORMANT
    again = operate(state, OP.GERMINATE, 1).slots[SEED_ID]
    assert not np.array_equal(again.params["steep"]["W"], learned)
    assert_identical(again.opt_state, MADE.seed_optimizer.init(again.params))


def test_a_dormant_slot_adds_no_arithmetic_to_the_step():
    def flops(made: host.Host, state: host.HostState) -> float:
        step = jax.jit(lambda state, batch: host.train_step(made, state, batch))
        counted = step.lower(state, batch(0)).compile().cost_analysis()
        assert counted is not None
        return counted["flops"]

    def without(params, seeds, gates, data):
        hidden = data[0] @ params["first"]["w"] + params["first"]["b"][None, :]
        return jnp.mean((hidden @ params["second"]["w"] - data[1]) ** 2)

    state = make_state(MADE)
    plain = replace(MADE, loss=without, init_seeds=lambda key: {})
    clock = 100  # the stage and the age of a slot are advanced in scalars
    assert flops(MADE, state) <= flops(plain, state._replace(slots={})) + clock
    assert flops(MADE, grown(SeedStage.TRAINING)) > flops(MADE, state) + 10 * clock


def test_no_stage_of_a_seed_compiles_the_step_anew(count_compilations):
    step = jax.jit(lambda state, batch: host.train_step(MADE, state, batch))
    state, _ = step(operate(make_state(MADE), OP.GERMINATE, 1), batch(0))
    state, _ = step(state, batch(1))
    moved = []
    for operation in UP_TO_FOSSIL[1:]:
        state = operate(state, operation)
        moved.append(state)
    with count_compilations() as compiled:
        data = batch(2)
        for state in moved:
            step(state, data)
    assert "step" not in " ".join(compiled.names)
    assert step._cache_size() == 1


def test_contribution_is_the_loss_without_the_seed_minus_the_loss_with_it():
    state = grown(SeedStage.FOSSILIZED)
    seeds = host.seeds_of(state.slots)
    at = lambda alpha: loss(  # noqa: E731
        state.params, seeds, {SEED_ID: growth.Gate(jnp.float32(alpha))}, batch(5)
    )
    measured = host.contribution(loss, state.params, state.slots, batch(5))[SEED_ID]
    np.testing.assert_allclose(measured, at(0.0) - at(1.0), rtol=1e-5)
