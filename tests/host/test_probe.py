"""The probe distinguishes candidates before they are grown, and changes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from host.tiny_host import BANK, SEED_ID, batch, loss, make_host, make_state, operate

from tamiyo_jax import growth, host
from tamiyo_jax.contracts import SeedOperation, SeedStage

MADE = make_host()


def test_the_probe_is_the_gradient_that_a_seed_begins_with_beside_the_networks_own():
    state = make_state(MADE)
    found = host.probe(MADE, state, batch(0))
    assert sorted(found[SEED_ID]) == sorted(BANK)
    seeds = MADE.init_seeds(jax.random.fold_in(state.rng, state.step))[SEED_ID]
    gates = {SEED_ID: growth.Gate(jnp.float32(1))}
    own = optax.tree.norm(
        jax.grad(loss)(state.params, {SEED_ID: {}}, host.gates_of(state.slots), batch(0))
    )
    scale = jnp.float32(1e-4)  # of outputs so small that the network is what it was
    for name, params in seeds.items():
        faint = {
            name: growth.Seed(BANK[name].init, lambda p, x, n=name: scale * BANK[n].apply(p, x))
        }

        def at(params, faint=faint, name=name):
            hidden = batch(0)[0] @ state.params["first"]["w"] + state.params["first"]["b"][None, :]
            hidden = growth.slot_apply(faint, {name: params}, gates[SEED_ID], hidden)
            return jnp.mean((hidden @ state.params["second"]["w"] - batch(0)[1]) ** 2)

        expected = jnp.linalg.norm(jax.grad(at)(params)["W"]) / scale / own
        np.testing.assert_allclose(found[SEED_ID][name], expected, rtol=1e-2)


def test_comparing_candidates_leaves_the_loss_as_it_is():
    state = make_state(MADE)
    gates = host.gates_of(state.slots)
    compared = MADE.init_seeds(jax.random.PRNGKey(0))
    np.testing.assert_array_equal(
        loss(state.params, compared, gates, batch(0)),
        loss(state.params, {SEED_ID: {}}, gates, batch(0)),
    )


def test_a_slot_in_which_something_grows_is_not_probed():
    assert host.probe(MADE, operate(make_state(MADE), SeedOperation.GERMINATE), batch(0)) == {}


def test_the_packet_has_the_probe_of_dormant_slots_only():
    measured = host.SeedMeasurements(0.0, 0.0, probe={"steep": 2.0})
    timing = growth.Timing(2, 2)

    def read_probes(stage: SeedStage):
        state = growth.enter(growth.dormant(), stage)
        seed = host.seed_state("s", state, measured, timing=timing, steps_per_epoch=1)
        return {name for name in seed.metrics if name.startswith("probe/")}

    assert read_probes(SeedStage.DORMANT) == {"probe/steep"}
    assert read_probes(SeedStage.TRAINING) == set()
