"""The reference loop on the digits: it resumes bit for bit, compiles once and reports correctly."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import jax
import numpy as np
import pytest

from tamiyo_jax import growth, host
from tamiyo_jax.config import GraphConfig, SecurityConfig
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CommandType,
    NonceLedger,
    Secret,
    SeedAdjustment,
    SeedOperation,
    SeedStage,
    SystemStatePacket,
    Verifier,
    sign,
    validate_blueprint,
    validate_packet,
)
from tamiyo_jax.demo import digits_task
from tamiyo_jax.errors import ConfigurationError, PolicyFailureError
from tamiyo_jax.training import Task
from tamiyo_jax.training import _loop as loop

SECRET = Secret("a secret for tests only")
# Optax's own optimisers and schedules mix dtypes.
pytestmark = pytest.mark.usefixtures("standard_promotion")

SCRIPT = {
    2: (SeedOperation.GERMINATE, "seed-0"),
    3: (SeedOperation.START_TRAINING, "seed-0"),
    5: (SeedOperation.START_GRAFTING, "seed-0"),
    8: (SeedOperation.STABILIZE, "seed-0"),
    9: (SeedOperation.FOSSILIZE, "seed-0"),
}


@dataclass
class Decision:
    command: AdaptationCommand | None
    shadow: bool = False


@dataclass
class Scripted:
    """Sends signed commands at given epochs, and remembers the packets."""

    script: dict
    packets: list[SystemStatePacket] = field(default_factory=list)

    def step(self, packet: SystemStatePacket) -> Decision:
        self.packets.append(packet)
        if packet.current_epoch not in self.script:
            return Decision(None)
        operation, seed_id = self.script[packet.current_epoch]
        parameters = {
            "blending_method_index": 1.0,
            "blending_schedule_start": 0.0,
            "blending_schedule_end": 1.0,
        }
        germinates = operation is SeedOperation.GERMINATE
        adjustment = SeedAdjustment(
            operation,
            packet.candidates[0] if germinates else None,
            parameters if germinates else {},
        )
        command = AdaptationCommand(
            f"command-{packet.packet_id}",
            CommandType.SEED,
            time.time_ns(),
            5,
            seed_id,
            payload=adjustment,
        )
        return Decision(sign(command, SECRET))


class Failing:
    def step(self, packet: SystemStatePacket) -> Decision:
        raise PolicyFailureError("the policy failed")


@pytest.fixture(scope="module")
def task() -> Task:
    return digits_task(0)


def applier(task, **options) -> host.CommandApplier:
    verifier = Verifier((SECRET,), NonceLedger(0), SecurityConfig())
    return host.CommandApplier(
        verifier, clock=time.time_ns, optimizer_id=task.optimizer_id, host=task.host, **options
    )


def train(task, controller, epochs, state=None, **options) -> loop.RunResult:
    return loop.run(
        task,
        controller,
        steps=epochs * task.steps_per_epoch,
        state=loop.init_loop(task, 0) if state is None else state,
        run_id="run",
        applier=applier(task),
        **options,
    )


def assert_identical(left, right) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), left, right
    )


@pytest.mark.slow
def test_a_run_resumed_from_a_checkpoint_goes_on_bit_for_bit(task, tmp_path):
    whole = Scripted(SCRIPT)
    expected = train(task, whole, 12, deterministic=True)
    halted = train(task, Scripted(SCRIPT), 6, deterministic=True)
    host.save_tree(tmp_path / "run", halted.state)
    restored = host.load_tree(tmp_path / "run", loop.init_loop(task, 1), task.host)
    resumed = Scripted(SCRIPT)
    result = train(task, resumed, 12, restored, deterministic=True)
    assert_identical(result.state, expected.state)
    assert resumed.packets == whole.packets[6:]


@pytest.mark.slow
def test_growing_neither_recompiles_nor_forgets_to_count_parameters(task, count_compilations):
    train(task, Scripted(SCRIPT), 10)
    with count_compilations() as compiled:
        result = train(task, Scripted(SCRIPT), 10)
    assert not {"_train_batches", "_measure"} & set(compiled.names)
    assert result.parameters_after > result.parameters_before
    stages = [record.packet.seeds[0].stage for record in result.history]
    assert stages[:6] == [SeedStage.DORMANT] * 2 + [SeedStage.GERMINATED] + [
        SeedStage.TRAINING
    ] * 2 + [SeedStage.BLENDING]


@pytest.mark.slow
def test_packets_are_valid_and_carry_times_only_when_the_run_is_not_deterministic(task):
    for deterministic in (True, False):
        controller = Scripted({})
        train(task, controller, 2, deterministic=deterministic)
        for packet in controller.packets:
            validate_packet(packet)
            measured = {"samples_per_s", "hook_latency_ms"} & set(packet.training_metrics)
            assert bool(measured) is not deterministic
            assert (packet.timestamp_ns == 0) is deterministic


def test_layers_of_the_blueprint_are_the_layers_that_are_measured(task):
    caps = GraphConfig()
    for blueprint in (task.blueprint, *task.candidates):
        validate_blueprint(
            blueprint,
            max_layers=caps.max_layers,
            max_activations=caps.max_activations,
            max_parameters=caps.max_parameters,
            max_edges=caps.max_edges,
        )
    state = loop.init_loop(task, 0).host
    assert {layer.layer_id for layer in task.blueprint.layers} == set(
        host.layer_names(state.params)
    )
    assert sum(layer.parameter_count or 0 for layer in task.blueprint.layers) == (
        host.live_parameters(state)
    )
    for candidate in task.candidates:
        largest = host.banks_of(task.host)["seed-0"][candidate.blueprint_id]
        assert sum(layer.parameter_count or 0 for layer in candidate.layers) == (
            sum(leaf.size for leaf in jax.tree.leaves(largest))
        )


def test_a_controller_that_fails_costs_its_decisions_and_nothing_else(task):
    failed = train(task, Failing(), 3)
    alone = train(task, None, 3)
    assert_identical(failed.state, alone.state)
    assert all(isinstance(record.error, PolicyFailureError) for record in failed.history)


def test_packets_name_the_newest_good_checkpoint(task, tmp_path):
    checkpoints = host.HostCheckpoints(tmp_path, task.host)
    controller = Scripted({})
    train(task, controller, 3, checkpoints=checkpoints)
    last = controller.packets[-1]
    assert last.restorable_checkpoint == f"step-{last.global_step:08d}"
    restored = checkpoints.restore(last.restorable_checkpoint, loop.init_loop(task, 0).host)
    assert int(restored.step) == last.global_step
    assert len(checkpoints.names()) == 3


@pytest.mark.slow
def test_a_state_with_a_broken_seed_is_no_checkpoint_though_the_network_is_sound(task, tmp_path):
    state = loop.init_loop(task, 0)
    grown = host.operate(
        task.host, state.host, "seed-0", SeedOperation.GERMINATE, blueprint_id="gated"
    )
    slot = grown.slots["seed-0"]
    broken = slot._replace(
        state=growth.enter(slot.state, SeedStage.TRAINING),
        params=jax.tree.map(lambda leaf: leaf * np.float32(np.nan), slot.params),
    )
    slots = {**state.host.slots, "seed-0": broken}
    controller = Scripted({})
    checkpoints = host.HostCheckpoints(tmp_path, task.host)
    spoilt = state._replace(host=state.host._replace(slots=slots))
    train(task, controller, 1, spoilt, checkpoints=checkpoints)
    (packet,) = controller.packets
    validate_packet(packet)
    assert packet.validation_loss is not None
    assert np.isfinite(packet.validation_loss)
    assert packet.restorable_checkpoint is None
    assert not checkpoints.names()


def test_a_run_takes_no_more_device_memory_the_longer_it_is(task):
    held: list[int] = []

    def measure(record: loop.Record, state: loop.LoopState) -> None:
        assert int(state.epochs) == record.packet.current_epoch
        held.append(sum(array.nbytes for array in jax.live_arrays()))

    train(task, Scripted({}), 6, on_step=measure)
    assert held[-1] == held[1]


@pytest.mark.slow
def test_all_slots_can_be_grown_from_the_start(task):
    state = loop.grow_all(task, loop.init_loop(task, 0), "mlp-wide")
    stages = {int(slot.state.stage) for slot in state.host.slots.values()}
    assert stages == {SeedStage.FOSSILIZED}
    assert train(task, None, 1, state).parameters_before > 3000


def test_a_controller_without_an_applier_is_refused(task):
    with pytest.raises(ConfigurationError, match="applier"):
        loop.run(task, Failing(), steps=1, state=loop.init_loop(task, 0), run_id="run")


@pytest.mark.slow
def test_a_grown_network_beats_the_one_that_could_not_grow(task):
    script = {epoch + 10: command for epoch, command in SCRIPT.items()}
    grown = train(task, Scripted(script), 80)
    small = train(task, None, 80)
    assert grown.test_accuracy > small.test_accuracy + 0.03
