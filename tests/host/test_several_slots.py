"""Slots beside one another: what happens to one is nothing to the others, nor to the host."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tamiyo_jax import growth, host
from tamiyo_jax.contracts import SeedOperation, SeedStage

WIDTH = 6
SLOTS = ("a", "b", "c")
EXAMPLE = jax.ShapeDtypeStruct((1, WIDTH), jnp.float32)
BANK = host.seed_bank("mlp", EXAMPLE).bank
MODES = {
    "a": growth.BlendMode.RESIDUAL,
    "b": growth.Channel((1.0,) * (WIDTH - 1) + (0.5,)),
    "c": growth.Confidence(gate_k=5.0, gate_tau=0.5, alpha_lo=0.2, alpha_hi=1.0),
}
OP = SeedOperation
UP = (OP.GERMINATE, OP.START_TRAINING, OP.START_GRAFTING, OP.STABILIZE, OP.FOSSILIZE)
# Optax's own optimisers mix dtypes.
pytestmark = pytest.mark.usefixtures("standard_promotion")


def output(params, seeds, gates, x):
    for name in SLOTS:
        x = jnp.tanh(x @ params[name])
        x = growth.slot_apply(BANK, seeds[name], gates[name], x, mode=MODES[name])
    return x


def loss(params, seeds, gates, batch):
    return jnp.mean((output(params, seeds, gates, batch[0]) - batch[1]) ** 2)


HOST = host.Host(
    loss=loss,
    optimizer=host.monitor(optax.chain(optax.adamw(1e-2), host.tamiyo_scale())),
    seed_optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    init_seeds=lambda key: {
        name: growth.slot_init(BANK, jax.random.fold_in(key, index), jnp.zeros(EXAMPLE.shape))
        for index, name in enumerate(SLOTS)
    },
    timing=growth.Timing(blend_steps=3, embargo_steps=2),
)
STEP = jax.jit(lambda state, batch: host.train_step(HOST, state, batch))
OUTPUT = jax.jit(
    lambda state, x: output(
        state.params,
        {name: slot.params for name, slot in state.slots.items()},
        host.gates_of(state.slots),
        x,
    )
)
CONTRIBUTION = jax.jit(lambda state, data: host.contribution(loss, state.params, state.slots, data))


def fresh() -> host.HostState:
    key = jax.random.PRNGKey(3)
    weights = jax.random.normal(key, (len(SLOTS), WIDTH, WIDTH), jnp.float32) / 2
    return host.init_host(HOST, dict(zip(SLOTS, weights, strict=True)), key)


def batch(index: int):
    x = jax.random.normal(jax.random.key(100 + index), (8, WIDTH), jnp.float32)
    return x, jnp.flip(jnp.sin(x), axis=1)


def operate(state, name, operation, blueprint=0):
    chosen = growth.blueprint_ids(BANK)[blueprint]
    return host.operate(HOST, state, name, operation, blueprint_id=chosen)


def run(state, script, steps):
    """Train, with ``{step: (slot, operation, blueprint)}`` done before its step."""
    for index in range(steps):
        if index in script:
            state = operate(state, *script[index])
        state, _ = STEP(state, batch(index))
    return state


def assert_identical(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_close(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("blueprint", range(len(BANK)))
@pytest.mark.parametrize("lived", [(OP.GERMINATE,), (OP.GERMINATE, OP.START_TRAINING)])
@pytest.mark.slow
def test_a_seed_culled_before_it_blends_leaves_all_else_as_if_it_had_never_been(lived, blueprint):
    # Programs with a seed and without it are compiled apart, and may add in another order.
    others = {0: ("a", OP.GERMINATE, 1), 1: ("a", OP.START_TRAINING), 5: ("a", OP.START_GRAFTING)}
    seed = {2 + i: ("c", operation, blueprint) for i, operation in enumerate(lived)}
    culled = run(fresh(), {**others, **seed, 7: ("c", OP.CULL)}, 14)
    never = run(fresh(), others, 14)
    assert int(culled.slots["c"].state.stage) == SeedStage.DORMANT
    assert_close(culled.params, never.params)
    assert_close(culled.opt_state, never.opt_state)
    for name in ("a", "b"):
        assert_close(culled.slots[name], never.slots[name])


@pytest.mark.parametrize("name", SLOTS)
def test_germinating_and_training_at_alpha_0_change_no_bit_of_the_hosts_output(name):
    x, _ = batch(0)
    state = fresh()
    before = OUTPUT(state, x)
    state = operate(state, name, OP.GERMINATE, 2)
    slot = state.slots[name]
    # A zero-initialised seed would prove nothing.
    loud = slot._replace(params=jax.tree.map(jnp.ones_like, slot.params))
    state = state._replace(slots={**state.slots, name: loud})
    for operation in (OP.START_TRAINING, OP.START_GRAFTING):
        assert_identical(OUTPUT(state, x), before)
        state = operate(state, name, operation)
    assert_identical(OUTPUT(state, x), before)
    state = operate(state, name, OP.STABILIZE)
    assert not np.allclose(OUTPUT(state, x), before)


@pytest.mark.slow
def test_resetting_one_slot_touches_no_other_optimiser():
    script = {
        0: ("a", OP.GERMINATE, 0),
        1: ("a", OP.START_TRAINING),
        2: ("b", OP.GERMINATE, 1),
        3: ("b", OP.START_TRAINING),
        8: ("b", OP.CULL),
    }
    state = run(fresh(), script, 8 + 1 + HOST.timing.embargo_steps + 1)
    reset, other = state.slots["b"], state.slots["a"]
    assert int(reset.state.stage) == SeedStage.DORMANT
    assert (reset.params, reset.opt_state) == ({}, ())
    counts = optax.tree.get_all_with_path(other.opt_state, "count")
    assert [int(count) for _, count in counts] == [11]
    assert any(np.any(leaf) for leaf in jax.tree.leaves(optax.tree.get(other.opt_state, "mu")))


def test_contributions_of_all_slots_in_one_pass_are_those_of_one_slot_at_a_time():
    state = fresh()
    for name, up_to in zip(SLOTS, (5, 4, 2), strict=True):
        for operation in UP[:up_to]:
            state = operate(state, name, operation, 1)
    slots = {
        name: slot._replace(params=jax.tree.map(lambda leaf: leaf + 0.3, slot.params))
        for name, slot in state.slots.items()
    }
    state = state._replace(slots=slots)
    seeds = {name: slot.params for name, slot in slots.items()}
    found = CONTRIBUTION(state, batch(50))
    for name in SLOTS:
        at = []
        for alpha in (0.0, 1.0):
            gates = host.gates_of(slots)
            gates[name] = gates[name]._replace(alpha=jnp.float32(alpha))
            at.append(loss(state.params, seeds, gates, batch(50)))
        assert abs(float(found[name])) > 1e-4
        np.testing.assert_allclose(found[name], at[0] - at[1], rtol=1e-4, atol=1e-6)


def test_a_step_is_compiled_for_what_grows_and_not_for_its_stage():
    step = jax.jit(lambda state, data: host.train_step(HOST, state, data))
    measure = jax.jit(lambda state, data: host.contribution(loss, state.params, state.slots, data))
    state = fresh()
    for name, blueprint in zip(SLOTS, (0, 1, 3), strict=True):
        for operation in (*UP[:4], OP.CULL):
            state, _ = step(operate(state, name, operation, blueprint), batch(0))
            measure(state, batch(1))
    for _ in range(HOST.timing.embargo_steps + 2):
        state, _ = step(state, batch(2))
    # Nothing, or one of three seeds.
    assert (step._cache_size(), measure._cache_size()) == (4, 4)
