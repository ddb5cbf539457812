"""The applier does what a genuine command says, and refuses everything else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host.tiny_host import SEED_ID, batch, make_host, make_state, operate
from hypothesis import given
from hypothesis import strategies as st
from summaries import equal_trees

from tamiyo_jax import host
from tamiyo_jax.config import SecurityConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CircuitBreakerAdjustment,
    CircuitBreakerState,
    CommandType,
    NonceLedger,
    OptimizerAdjustment,
    Rollback,
    Secret,
    SeedAdjustment,
    SeedOperation,
    SeedStage,
    Verifier,
    sign,
)
from tamiyo_jax.errors import (
    CheckpointMismatchError,
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
    return host.CommandApplier(verifier, clock=Clock(), optimizer_id="sgd", host=MADE, **options)


def state() -> host.HostState:
    return make_state(MADE)


def blend() -> host.HostState:
    """A host in the middle of a blend, its momentum and its seed's set in motion."""
    current = state()
    for operation in (
        SeedOperation.GERMINATE,
        SeedOperation.START_TRAINING,
        SeedOperation.START_GRAFTING,
    ):
        current, _ = STEP(operate(current, operation), batch(int(current.step)))
    assert 0 < float(current.slots[SEED_ID].state.alpha) < 1
    return current


STEP = jax.jit(lambda state, batch: host.train_step(MADE, state, batch))


def test_germinating_chooses_blueprint_and_schedule_and_keeps_alpha_at_0():
    done = applier()(state(), Decision(seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE)))
    slot = done.slots[SEED_ID].state
    assert int(slot.stage) == SeedStage.GERMINATED
    assert int(slot.blueprint) == 1
    assert float(slot.alpha) == 0
    assert [float(x) for x in slot.schedule] == [1, 0.25, 0.75]


def test_waiting_leaves_the_state_as_it_is():
    before = blend()
    assert equal_trees(applier()(before, Decision(None)), before)


# One command of every type that a host takes, and something that alters it.
GENUINE = {
    "SEED": (seed_command(SeedOperation.GERMINATE, "steep", SCHEDULE), {"target_seed_id": "other"}),
    "OPTIMIZER": (
        command(CommandType.OPTIMIZER, OptimizerAdjustment("sgd", {"lr_delta": -0.5})),
        {"payload": OptimizerAdjustment("sgd", {"lr_delta": 0.5})},
    ),
    "PAUSE": (command(CommandType.PAUSE), {"command_id": "another"}),
    "CIRCUIT_BREAKER": (
        command(CommandType.CIRCUIT_BREAKER, CircuitBreakerAdjustment(CircuitBreakerState.OPEN)),
        {"payload": CircuitBreakerAdjustment(CircuitBreakerState.CLOSED)},
    ),
    "ROLLBACK": (
        command(CommandType.ROLLBACK, Rollback("good")),
        {"payload": Rollback("better")},
    ),
}


@pytest.mark.parametrize(("good", "altered"), GENUINE.values(), ids=GENUINE)
def test_only_a_genuine_new_and_fresh_command_is_applied(tmp_path, good, altered):
    checkpoints, before = host.HostCheckpoints(tmp_path, MADE), state()
    checkpoints.save("good", before._replace(step=jnp.int32(7)))
    apply = applier(checkpointer=checkpoints)
    forged = sign(good, Secret("a secret of another process"))
    for false in (forged, replace(good, **altered), replace(good, annotations={})):
        with pytest.raises(SignatureError):
            apply(before, Decision(false))
    for issued in (None, NOW - 61_000_000_000, NOW + 6_000_000_000):
        with pytest.raises(StaleMessageError):
            apply(before, Decision(sign(replace(good, issued_at_ns=issued), SECRET)))
    assert not equal_trees(apply(before, Decision(good)), before)  # what was refused spent no id
    with pytest.raises(ReplayError):
        apply(before, Decision(good))


@pytest.mark.parametrize(("good", "_"), GENUINE.values(), ids=GENUINE)
def test_shadow_leaves_the_state_and_does_not_spend_the_command(tmp_path, good, _):
    checkpoints, before = host.HostCheckpoints(tmp_path, MADE), state()
    checkpoints.save("good", before._replace(step=jnp.int32(7)))
    apply = applier(checkpointer=checkpoints)
    assert apply(before, Decision(good, shadow=True)) is before
    assert not equal_trees(apply(before, Decision(good)), before)


def test_a_command_from_before_the_applier_was_there_is_refused():
    verifier = Verifier((SECRET,), NonceLedger(NOW + 1), SecurityConfig())
    late = host.CommandApplier(verifier, clock=Clock(NOW + 2), optimizer_id="sgd")
    with pytest.raises(StaleMessageError, match="before this verifier started"):
        late(state(), Decision(command(CommandType.PAUSE)))


def test_a_pause_lasts_until_the_next_decision_that_is_none():
    apply = applier()
    paused = apply(state(), Decision(command(CommandType.PAUSE)))
    assert bool(paused.paused)
    shadowed = apply(paused, Decision(None, shadow=True))
    assert bool(shadowed.paused)
    assert not bool(apply(paused, Decision(None)).paused)


@pytest.mark.parametrize(
    "held",
    [
        command(CommandType.PAUSE),
        command(CommandType.CIRCUIT_BREAKER, CircuitBreakerAdjustment(CircuitBreakerState.OPEN)),
    ],
    ids=["PAUSE", "CIRCUIT_BREAKER"],
)
def test_alpha_and_seeds_stand_still_while_the_host_trains_on(held):
    before, apply = blend(), applier()
    free, _ = STEP(before, batch(9))
    current = apply(before, Decision(held))
    for index in (9, 10, 11):
        current, metrics = STEP(current, batch(index))
        assert equal_trees(current.slots, before.slots)
        assert float(metrics.seed_gradient_norms[SEED_ID]) == 0
        if index == 9:
            assert equal_trees(current.params, free.params)
            assert equal_trees(current.opt_state, free.opt_state)
    assert int(current.step) == int(before.step) + 3
    if held.command_type is CommandType.PAUSE:
        released = apply(current, Decision(None))
    else:
        closed = CircuitBreakerAdjustment(CircuitBreakerState.CLOSED)
        released = apply(current, Decision(command(CommandType.CIRCUIT_BREAKER, closed, number=2)))
    moved, _ = STEP(released, batch(12))
    assert float(moved.slots[SEED_ID].state.alpha) == float(free.slots[SEED_ID].state.alpha)
    assert not equal_trees(moved.slots[SEED_ID].params, before.slots[SEED_ID].params)


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


@pytest.mark.slow
@given(st.lists(st.floats(-10, 10, width=32), max_size=8))
def test_the_learning_rate_is_multiplied_and_bounded_in_all(deltas):
    apply, before, expected = applier(), state(), np.float32(1)
    current = before
    for number, delta in enumerate(deltas):
        adjustment = OptimizerAdjustment("sgd", {"lr_delta": delta})
        sent = command(CommandType.OPTIMIZER, adjustment, number=number)
        current = apply(current, Decision(sent))
        expected = np.clip(expected * np.float32(1 + delta), *map(np.float32, host.LIMITS))
        assert 0.001 <= round(float(host.scale_of(current.opt_state)), 6) <= 10
        np.testing.assert_allclose(host.scale_of(current.opt_state), expected, rtol=1e-6)
    assert equal_trees(current._replace(opt_state=before.opt_state), before)


def test_a_scaled_learning_rate_scales_the_update_and_no_statistic():
    before = state()
    halve = command(CommandType.OPTIMIZER, OptimizerAdjustment("sgd", {"lr_delta": -0.5}))
    plain, measured = STEP(before, batch(0))
    scaled, also = STEP(applier()(before, Decision(halve)), batch(0))
    update = jax.tree.map(jnp.subtract, plain.params, before.params)
    halved = jax.tree.map(jnp.subtract, scaled.params, before.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a / 2, b, rtol=1e-4, atol=1e-7), update, halved
    )
    np.testing.assert_array_equal(measured.statistics.gradient_norm, also.statistics.gradient_norm)


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


def test_a_rollback_goes_back_bit_for_bit_and_comes_the_same_way_again(tmp_path):
    checkpoints = host.HostCheckpoints(tmp_path, MADE)
    good = blend()
    checkpoints.save("good", good)

    def train(current: host.HostState) -> host.HostState:
        for _ in range(3):
            current, _ = STEP(current, batch(int(current.step)))  # the data follows from the step
        return current

    first = train(good)
    compiled = STEP._cache_size()
    apply = applier(checkpointer=checkpoints)
    restored = apply(first, Decision(command(CommandType.ROLLBACK, Rollback("good"))))
    assert equal_trees(restored, good)  # parameters, momentum, multiplier, slots, rng and step
    assert equal_trees(train(restored), first)
    assert STEP._cache_size() == compiled


def test_a_rollback_across_a_growth_brings_the_smaller_network_back_and_it_trains_on(tmp_path):
    checkpoints, small = host.HostCheckpoints(tmp_path, MADE), state()
    checkpoints.save("small", small)
    expected, _ = STEP(small, batch(0))
    grown = blend()
    assert host.live_parameters(grown) > host.live_parameters(small)
    back = command(CommandType.ROLLBACK, Rollback("small"))
    restored = applier(checkpointer=checkpoints)(grown, Decision(back))
    assert equal_trees(restored, small)
    assert equal_trees(STEP(restored, batch(0))[0], expected)
    forward = Decision(seed_command(SeedOperation.GERMINATE, "gentle", SCHEDULE, number=2))
    assert list(applier()(restored, forward).slots[SEED_ID].params) == ["gentle"]


def test_a_rollback_to_a_larger_network_brings_its_seed_back(tmp_path):
    checkpoints, grown = host.HostCheckpoints(tmp_path, MADE), blend()
    checkpoints.save("grown", grown)
    culled = operate(grown, SeedOperation.CULL)
    back = command(CommandType.ROLLBACK, Rollback("grown"))
    assert equal_trees(applier(checkpointer=checkpoints)(culled, Decision(back)), grown)


def test_a_checkpoint_of_every_stage_comes_back_into_a_fresh_host(tmp_path):
    current, stages = state(), {}
    life = ("GERMINATE", "START_TRAINING", "START_GRAFTING", "STABILIZE", "FOSSILIZE")
    for name in (None, *life):
        current = current if name is None else operate(current, SeedOperation[name], 1)
        current, _ = STEP(current, batch(0))
        stages[SeedStage(int(current.slots[SEED_ID].state.stage))] = current
    current = operate(stages[SeedStage.TRAINING], SeedOperation.CULL)
    while True:
        stage = SeedStage(int(current.slots[SEED_ID].state.stage))
        if stage is SeedStage.DORMANT:
            break
        stages[stage] = current
        current, _ = STEP(current, batch(0))
    assert len(stages) == 9
    for stage, saved in stages.items():
        checkpoints = host.HostCheckpoints(tmp_path / stage.name, MADE)
        checkpoints.save("good", saved)
        assert equal_trees(checkpoints.restore("good", state()), saved)


def test_a_rollback_leaves_the_breaker_where_it_was_commanded_and_ends_a_pause(tmp_path):
    checkpoints, good = host.HostCheckpoints(tmp_path, MADE), state()
    checkpoints.save("good", good)
    now = good._replace(breaker_open=jnp.bool_(True), paused=jnp.bool_(True))
    back = command(CommandType.ROLLBACK, Rollback("good"))
    restored = applier(checkpointer=checkpoints)(now, Decision(back))
    assert bool(restored.breaker_open)
    assert not bool(restored.paused)


@pytest.mark.parametrize("name", ["gone", "../outside/good", ""])
def test_a_rollback_to_what_this_host_does_not_keep_is_an_error(tmp_path, name):
    host.HostCheckpoints(tmp_path / "outside", MADE).save("good", state())
    checkpoints = host.HostCheckpoints(tmp_path / "kept", MADE)
    checkpoints.save("step-1", state())
    back = command(CommandType.ROLLBACK, Rollback(name))
    with pytest.raises(PersistenceError, match=r"no checkpoint .*step-1"):
        applier(checkpointer=checkpoints)(state(), Decision(back))


def test_a_rollback_to_the_checkpoint_of_another_host_is_an_error(tmp_path):
    checkpoints, own = host.HostCheckpoints(tmp_path, MADE), state()
    wider = jax.tree.map(lambda x: jnp.concatenate([x, x]), own.params)
    halved = jax.tree.map(lambda x: x.astype(jnp.float16), own.params)
    others = {
        "wider": own._replace(params=wider),
        "halved": own._replace(params=halved),
        "without": own._replace(slots={}),
    }
    for name, other in others.items():
        checkpoints.save(name, other)
        back = command(CommandType.ROLLBACK, Rollback(name))
        with pytest.raises(CheckpointMismatchError, match=name):
            applier(checkpointer=checkpoints)(own, Decision(back))


DAMAGED = """
import sys
from pathlib import Path
import numpy as np
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.host import load_tree, save_tree

path, tree = Path(sys.argv[1]), {"a": np.arange(1_000, dtype=np.float32)}
save_tree(path, tree)
for file in path.glob("**/d/*"):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + b"?" + data[len(data) // 2 + 1 :])
try:
    load_tree(path, tree)
except PersistenceError as error:
    print(error)
"""


def test_a_damaged_checkpoint_is_an_error(tmp_path):
    # A process of its own: Orbax leaves reads behind that complain in its threads when one fails.
    result = subprocess.run(
        [sys.executable, "-c", DAMAGED, str(tmp_path / "good")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "good is damaged" in result.stdout, result.stderr
