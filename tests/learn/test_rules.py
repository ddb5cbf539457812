"""The rules as arrays choose what the heuristic policy chooses upon the packets of the same run."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tiny_learning import action_of, tiny_env

from tamiyo_jax.config import HeuristicConfig, PolicyConfig
from tamiyo_jax.contracts import CircuitBreakerState
from tamiyo_jax.graph import blueprint_order
from tamiyo_jax.host import scale_of
from tamiyo_jax.learn import (
    Schedule,
    heuristic_rules,
    new_memory,
    packet_of,
    rule_action,
    rules_of,
)
from tamiyo_jax.policy import Action, HeuristicPolicy, Observation, legality, select

pytestmark = pytest.mark.usefixtures("standard_promotion")

HASTY = HeuristicConfig(
    plateau_epochs=1,
    plateau_improvement=0.1,
    min_epochs=1,
    train_epochs=1,
    embargo_epochs=1,
    harm_epochs=1,
    harm_fraction=0.0,
    rising_epochs=1,
)


@pytest.mark.slow
@pytest.mark.parametrize("config", [HeuristicConfig(plateau_improvement=0.5), HASTY])
def test_the_rules_choose_what_the_heuristic_chooses(config: HeuristicConfig) -> None:
    env, _, step, state = tiny_env()
    policy = HeuristicPolicy(config, PolicyConfig.small())
    remembered, memory = policy.initial_state(), new_memory(env)
    rules = heuristic_rules(config, env.epochs)
    choose = jax.jit(lambda memory, state: rule_action(env, rules, memory, state))
    action, seen = action_of(Action.WAIT), []
    for _ in range(env.epochs):
        raw, state, *_ = step(state, action)
        memory, action = choose(memory, state)
        packet = packet_of(env, state, "run")
        legal = legality(
            packet,
            blueprint_order(env.network.blueprint, env.network.candidates),
            max_seeds=env.graph_config.max_seeds,
            max_blueprints=env.graph_config.max_blueprints,
            seedless=False,
            host_breaker=CircuitBreakerState.CLOSED,
        )
        observation = Observation(packet, env.layout, raw, legal)
        remembered, outputs = policy.decide({}, remembered, observation)
        expected = select(outputs, legal)
        chosen = Action(int(action.action))
        seen.append(chosen)
        assert chosen is Action(int(expected.action)), seen
        if chosen not in (Action.WAIT, Action.OPTIMIZER):
            assert int(action.seed) == int(expected.seed)
        if chosen is Action.GERMINATE:
            assert int(action.blueprint) == int(expected.blueprint)
        if chosen is Action.OPTIMIZER:
            np.testing.assert_allclose(float(action.lr_delta), float(outputs.param_delta))
    assert Action.GERMINATE in seen


@pytest.mark.slow
def test_a_brake_scales_the_plan_of_the_learning_rate_down_for_good() -> None:
    """The loss is made to rise twice in a row, and to fall from then on."""
    env, _, step, state = tiny_env()
    plan = rules_of(Schedule(rate=2.0, floor=0.999), env.epochs)._replace(
        rising_epochs=np.int32(2), brake=np.float32(0.5), tolerance=np.float32(0.1)
    )
    choose = jax.jit(lambda memory, state: rule_action(env, plan, memory, state))
    memory, action = new_memory(env), action_of(Action.WAIT)
    scales, losses = [], [1.0, 1.1, 1.2, 1.1, 1.0, 0.9]
    for loss in losses:
        state = step(state, action)[1]
        measured = state.measured._replace(validation_loss=np.float32(loss))
        state = state._replace(measured=measured)
        scales.append(round(float(scale_of(state.host)), 2))
        memory, action = choose(memory, state)
    assert scales == [1.0, 2.0, 2.0, 1.0, 1.0, 1.0]
