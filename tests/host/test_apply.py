"""The applier does what a genuine command says, and refuses everything else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from host.tiny_host import SEED_ID, batch, make_host, make_state

from tamiyo_jax import host
from tamiyo_jax.config import SecurityConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    CommandType,
    OptimizerAdjustment,
    Rollback,
    SeedAdjustment,
    SeedOperation,
    SeedStage,
)
from tamiyo_jax.contracts.signing import NonceLedger, Secret, Verifier, sign
from tamiyo_jax.errors import (
    CommandRejectedError,
    IllegalTransitionError,
    PersistenceError,
    ReplayError,
    SignatureError,
    StaleMessageError,
)

NOW = 1_700_000_000_000_000_000
SECRET = Secret("a secret for tests only")
MADE = make_host()
SCHEDULE = {
    "alpha": 0.1,
    "blending_method_index": 1.0,
    "blending_schedule_start": 0.25,
    "blending_schedule_end": 0.75,
}


class Decision(NamedTuple):
    command: AdaptationCommand | None
    shadow: bool = False


@dataclass
class Clock:
    now: int = NOW

    def __call__(self) -> int:
        return self.now


def command(kind: CommandType, payload=None, *, seed_id=None, number=1) -> AdaptationCommand:
    return sign(
        AdaptationCommand(f"command-{number}", kind, NOW, 5, seed_id, payload=payload), SECRET
    )


def seed_command(operation, blueprint=None, parameters=None, *, seed_id=SEED_ID, number=1):
    adjustment = SeedAdjustment(operation, blueprint, parameters or {})
    return command(CommandType.SEED, adjustment, seed_id=seed_id, number=number)


def applier(**options) -> host.CommandApplier:
    verifier = Verifier((SECRET,), NonceLedger(0), SecurityConfig())
    return host.CommandApplier(verifier, clock=Clock(), optimizer_id="sgd", **options)


def state() -> host.HostState:
    return make_state(MADE)


def same(left, right) -> bool:
    equal = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), left, right)
    return all(jax.tree.leaves(equal))


def test_germinating_chooses_blueprint_and_schedule_and_keeps_alpha_at_0():
    done = applier()(state(), Decision(seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE)))
    slot = done.slots[SEED_ID].state
    assert int(slot.stage) == SeedStage.GERMINATED
    assert int(slot.blueprint) == 1
    assert float(slot.alpha) == 0
    assert [float(x) for x in slot.schedule] == [1, 0.25, 0.75]


def test_wait_and_shadow_leave_the_state_as_it_is():
    before = state()
    germinate = seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE)
    assert same(applier()(before, Decision(None)), before)
    assert applier()(before, Decision(germinate, shadow=True)) is before


def test_a_tampered_an_unsigned_and_a_repeated_command_are_refused():
    good = seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE)
    apply = applier()
    with pytest.raises(SignatureError):
        apply(state(), Decision(replace(good, target_seed_id="other")))
    with pytest.raises(SignatureError):
        apply(state(), Decision(replace(good, annotations={})))
    apply(state(), Decision(good))
    with pytest.raises(ReplayError):
        apply(state(), Decision(good))


def test_a_command_older_than_its_freshness_is_refused():
    verifier = Verifier((SECRET,), NonceLedger(0), SecurityConfig())
    late = host.CommandApplier(verifier, clock=Clock(NOW + 61_000_000_000), optimizer_id="sgd")
    with pytest.raises(StaleMessageError):
        late(state(), Decision(command(CommandType.PAUSE)))


def test_a_pause_lasts_until_the_next_decision_that_is_none():
    apply = applier()
    paused = apply(state(), Decision(command(CommandType.PAUSE)))
    assert bool(paused.paused)
    shadowed = apply(paused, Decision(None, shadow=True))
    assert bool(shadowed.paused)
    assert not bool(apply(paused, Decision(None)).paused)


def test_the_breaker_opens_refuses_growth_allows_a_cull_and_closes():
    apply = applier()
    opened = apply(
        state(),
        Decision(
            command(CommandType.CIRCUIT_BREAKER, CircuitBreakerAdjustment(CircuitBreakerState.OPEN))
        ),
    )
    assert bool(opened.breaker_open)
    with pytest.raises(CommandRejectedError, match="breaker is open"):
        apply(
            opened,
            Decision(seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE, number=2)),
        )
    germinated = applier()(
        state(), Decision(seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE))
    )._replace(breaker_open=opened.breaker_open)
    culled = apply(germinated, Decision(seed_command(SeedOperation.CULL, number=3)))
    assert int(culled.slots[SEED_ID].state.stage) == SeedStage.CULLED
    closed = CircuitBreakerAdjustment(CircuitBreakerState.CLOSED)
    done = apply(culled, Decision(command(CommandType.CIRCUIT_BREAKER, closed, number=4)))
    assert not bool(done.breaker_open)


def test_the_learning_rate_is_multiplied_and_bounded_in_all():
    apply, current = applier(), state()
    for number in range(5):
        adjustment = OptimizerAdjustment("sgd", {"lr_delta": -0.5})
        current = apply(
            current, Decision(command(CommandType.OPTIMIZER, adjustment, number=number))
        )
    np.testing.assert_allclose(host.scale_of(current.opt_state), 0.1)


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE, seed_id="none"), "'none'"),
        (seed_command(SeedOperation.GERMINATE, "unknown", SCHEDULE), "'unknown'"),
        (seed_command(SeedOperation.GERMINATE, "steep"), "blending_method_index"),
        (
            seed_command(
                SeedOperation.GERMINATE, "steep", {**SCHEDULE, "blending_method_index": 3.0}
            ),
            "methods",
        ),
        (
            seed_command(
                SeedOperation.GERMINATE, "steep", {**SCHEDULE, "blending_schedule_end": 0.1}
            ),
            "schedule",
        ),
        (command(CommandType.OPTIMIZER, OptimizerAdjustment("adam", {"lr_delta": 0.1})), "'adam'"),
        (command(CommandType.OPTIMIZER, OptimizerAdjustment("sgd", {"beta": 0.1})), "beta"),
        (
            command(CommandType.OPTIMIZER, OptimizerAdjustment("sgd", {"lr_delta": np.nan})),
            "finite",
        ),
        (
            command(
                CommandType.CIRCUIT_BREAKER,
                CircuitBreakerAdjustment(CircuitBreakerState.HALF_OPEN),
            ),
            "HALF_OPEN",
        ),
        (command(CommandType.ROLLBACK, Rollback("step-1")), "checkpointer"),
        (command(CommandType.EMERGENCY), "EMERGENCY"),
        (command(CommandType.SEED), "NoneType"),
    ],
)
def test_a_genuine_command_that_this_host_cannot_carry_out_is_an_error(made, match):
    with pytest.raises(CommandRejectedError, match=match):
        applier()(state(), Decision(made))


def test_an_illegal_operation_is_an_error():
    with pytest.raises(IllegalTransitionError):
        applier()(state(), Decision(seed_command(SeedOperation.FOSSILIZE)))


def test_a_rollback_restores_all_of_the_host_and_recompiles_nothing(tmp_path):
    checkpoints = host.HostCheckpoints(tmp_path)
    good = state()
    checkpoints.save("good", good)
    step = jax.jit(lambda state, batch: host.train_step(MADE, state, batch))
    moved, _ = step(good, batch(0))
    apply = applier(checkpointer=checkpoints)
    restored = apply(moved, Decision(command(CommandType.ROLLBACK, Rollback("good"))))
    assert same(restored, good)
    assert same(step(restored, batch(0))[0], moved)
    assert step._cache_size() == 1
    with pytest.raises(PersistenceError, match="no checkpoint"):
        apply(moved, Decision(command(CommandType.ROLLBACK, Rollback("gone"), number=2)))
