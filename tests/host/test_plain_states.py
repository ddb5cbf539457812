"""Commands upon a train state that is no `HostState`, and checkpoints in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from host.test_apply import Decision, applier, command, seed_command

from tamiyo_jax import host
from tamiyo_jax.contracts import (
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    CommandType,
    OptimizerAdjustment,
    Rollback,
    SeedOperation,
)
from tamiyo_jax.errors import CommandRejectedError, PersistenceError

PARAMS = {"w": jnp.arange(3, dtype=jnp.float32)}
TX = optax.chain(optax.sgd(0.1), host.tamiyo_scale())
STATE = (PARAMS, TX.init(PARAMS), jnp.tanh)  # Equinox keeps functions among its leaves


def test_its_learning_rate_is_scaled():
    adjustment = OptimizerAdjustment("sgd", {"lr_delta": -0.5})
    braked = applier()(STATE, Decision(command(CommandType.OPTIMIZER, adjustment)))
    assert float(host.scale_of(braked)) == 0.5
    assert braked[2] is jnp.tanh
    np.testing.assert_array_equal(braked[0]["w"], PARAMS["w"])


def test_it_is_rolled_back():
    kept = host.MemoryCheckpoints()
    kept.save("good", STATE)
    worse = jax.tree.map(lambda x: x + 1 if isinstance(x, jax.Array) else x, STATE)
    decision = Decision(command(CommandType.ROLLBACK, Rollback("good")))
    back = applier(checkpointer=kept)(worse, decision)
    np.testing.assert_array_equal(back[0]["w"], PARAMS["w"])
    assert float(host.scale_of(back)) == 1.0


@pytest.mark.parametrize(
    "decision",
    [
        Decision(None),
        Decision(command(CommandType.PAUSE)),
        Decision(
            command(CommandType.CIRCUIT_BREAKER, CircuitBreakerAdjustment(CircuitBreakerState.OPEN))
        ),
    ],
    ids=["wait", "pause", "breaker"],
)
def test_it_has_nothing_that_could_be_stopped(decision: Decision):
    assert applier()(STATE, decision) is STATE


def test_it_has_no_seeds():
    with pytest.raises(CommandRejectedError, match="tuple has no slots"):
        applier()(STATE, Decision(seed_command(SeedOperation.CULL)))


def test_what_is_kept_survives_its_donation_and_can_be_had_twice():
    kept = host.MemoryCheckpoints()
    state = {"w": jnp.ones(3, jnp.float32)}
    kept.save("good", state)
    state["w"].delete()
    kept.restore("good", state)["w"].delete()
    np.testing.assert_array_equal(kept.restore("good", state)["w"], np.ones(3, np.float32))


def test_the_newest_and_one_out_of_reach_of_a_slow_divergence_are_kept():
    kept = host.MemoryCheckpoints()
    for save in range(1, 40):
        kept.save(f"{save:02d}", PARAMS)
        names = sorted(kept.names())
        assert names[-1] == f"{save:02d}"
        assert len(names) <= 3
        assert save <= 10 or 8 <= save - int(names[0]) <= 17
    with pytest.raises(PersistenceError, match=r"'01'.*'39'"):
        kept.restore("01", PARAMS)


def test_a_rollback_forgets_what_it_undoes():
    kept = host.MemoryCheckpoints()
    for name in ("a", "b", "c"):
        kept.save(name, PARAMS)
    kept.forget_after("a")
    assert kept.names() == {"a"}


def test_numpy_arrays_are_kept_as_copies():
    kept, state = host.MemoryCheckpoints(), {"w": np.ones(3, np.float32)}
    kept.save("good", state)
    state["w"] *= 2
    restored = kept.restore("good", state)
    np.testing.assert_array_equal(restored["w"], np.ones(3, np.float32))
    restored["w"] *= 3
    np.testing.assert_array_equal(kept.restore("good", state)["w"], np.ones(3, np.float32))
