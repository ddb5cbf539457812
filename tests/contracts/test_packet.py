from __future__ import annotations

import dataclasses
import math
import pickle

import pytest

from tamiyo_jax.contracts import (
    HardwareContext,
    SeedStage,
    SeedState,
    SystemStatePacket,
    validate_packet,
)
from tamiyo_jax.errors import InvalidPacketError, MissingBlueprintIdError

SEED = SeedState("seed-a", SeedStage.TRAINING, gradient_norm=0.5, layer_depth=3)
PACKET = SystemStatePacket(
    "packet",
    "run",
    "network",
    current_epoch=2,
    global_step=40,
    validation_loss=0.5,
    training_metrics={"loss": 0.5, "gradient_norm": 1.0},
    seeds=(SEED, SeedState("seed-b", SeedStage.DORMANT)),
    hardware=HardwareContext("gpu", "0", 24.0, 3.5),
)


def with_seed(**changes: object) -> SystemStatePacket:
    return dataclasses.replace(
        PACKET, seeds=(PACKET.seeds[1], dataclasses.replace(SEED, **changes))
    )


def with_hardware(**changes: object) -> SystemStatePacket:
    return dataclasses.replace(PACKET, hardware=dataclasses.replace(PACKET.hardware, **changes))


def with_packet(**changes: object) -> SystemStatePacket:
    return dataclasses.replace(PACKET, **changes)


def test_a_sound_packet_passes() -> None:
    validate_packet(PACKET)
    validate_packet(SystemStatePacket("packet", "run", "network"))


def test_losses_and_metrics_may_be_nan_or_infinite() -> None:
    validate_packet(
        with_packet(
            validation_loss=math.nan, training_loss=math.inf, training_metrics={"loss": math.nan}
        )
    )
    validate_packet(with_seed(metrics={"contribution": -math.inf}))


def test_a_packet_without_blueprint_id_has_an_error_of_its_own() -> None:
    with pytest.raises(MissingBlueprintIdError) as caught:
        validate_packet(with_packet(blueprint_id=""))
    assert caught.value.field == "blueprint_id"


@pytest.mark.parametrize(
    ("packet", "field"),
    [
        (with_packet(packet_id=""), "packet_id"),
        (with_packet(training_run_id=""), "training_run_id"),
        (with_packet(optimizer_id=""), "optimizer_id"),
        (with_packet(restorable_checkpoint=""), "restorable_checkpoint"),
        (with_packet(candidate_blueprint_ids=("a", "")), "candidate_blueprint_ids[1]"),
        (with_packet(candidate_blueprint_ids=("a", "a")), "candidate_blueprint_ids"),
        (with_packet(blueprint_id="x" * 257), "blueprint_id"),
        (with_packet(blueprint_id="é" * 129), "blueprint_id"),
        (with_packet(packet_id="\ud800"), "packet_id"),
        (with_packet(packet_id=7), "packet_id"),
        (with_packet(experiment_name=None), "experiment_name"),
        (with_packet(current_epoch=-1), "current_epoch"),
        (with_packet(current_epoch=True), "current_epoch"),
        (with_packet(current_epoch=2**32), "current_epoch"),
        (with_packet(current_epoch=10**5000), "current_epoch"),
        (with_packet(validation_loss=10**400), "validation_loss"),
        (with_packet(validation_accuracy=-(10**5000)), "validation_accuracy"),
        (with_packet(candidate_blueprint_ids=["a"]), "candidate_blueprint_ids"),
        (with_packet(training_metrics={"loss": 10**400}), "training_metrics['loss']"),
        (with_packet(training_metrics={10**5000: 0.5}), "training_metrics"),
        (with_packet(seeds=[SEED]), "seeds"),
        (with_packet(seeds=(None,)), "seeds[0]"),
        (with_packet(hardware="gpu"), "hardware"),
        (with_packet(global_step=-1), "global_step"),
        (with_packet(global_step=1.5), "global_step"),
        (with_packet(timestamp_ns=-1), "timestamp_ns"),
        (with_packet(validation_loss="0.5"), "validation_loss"),
        (with_packet(validation_accuracy=math.nan), "validation_accuracy"),
        (with_packet(training_metrics={3: 0.5}), "training_metrics"),
        (with_packet(training_metrics={"loss": None}), "training_metrics['loss']"),
        (with_packet(seeds=(SEED, SEED)), "seeds"),
        (with_seed(seed_id=""), "seeds[1].seed_id"),
        (with_seed(stage=SeedStage.UNKNOWN), "seeds[1].stage"),
        (with_seed(stage=57), "seeds[1].stage"),
        (with_seed(stage=None), "seeds[1].stage"),
        (with_seed(risk_score=math.nan), "seeds[1].risk_score"),
        (with_seed(learning_rate=math.inf), "seeds[1].learning_rate"),
        (with_seed(gradient_norm="big"), "seeds[1].gradient_norm"),
        (with_seed(layer_depth=-1), "seeds[1].layer_depth"),
        (with_seed(age_epochs=0.5), "seeds[1].age_epochs"),
        (with_seed(metrics={"alpha": "half"}), "seeds[1].metrics['alpha']"),
        (with_hardware(device_type=None), "hardware.device_type"),
        (with_hardware(available_memory_gb=math.nan), "hardware.available_memory_gb"),
        (with_hardware(compute_capability=-1), "hardware.compute_capability"),
    ],
)
def test_a_breach_is_refused_and_its_field_named(packet: SystemStatePacket, field: str) -> None:
    with pytest.raises(InvalidPacketError) as caught:
        validate_packet(packet)
    assert caught.value.field == field
    assert field in str(caught.value)


def test_what_is_no_packet_is_refused() -> None:
    with pytest.raises(InvalidPacketError, match=r"packet is None; give a SystemStatePacket"):
        validate_packet(None)


def test_a_packet_of_a_class_derived_from_ours_passes() -> None:
    @dataclasses.dataclass(frozen=True)
    class Annotated(SystemStatePacket):
        note: object = None

    validate_packet(Annotated("packet", "run", "network", note=object()))


def test_an_id_of_256_bytes_is_still_an_id() -> None:
    validate_packet(with_packet(blueprint_id="x" * 256, packet_id="é" * 128))


def test_more_metrics_than_the_limit_are_refused_for_packet_and_seed() -> None:
    metrics = {f"m{index}": 0.0 for index in range(5)}
    for packet in (with_packet(training_metrics=metrics), with_seed(metrics=metrics)):
        validate_packet(packet, max_metrics=5)
        with pytest.raises(InvalidPacketError, match="at most 4"):
            validate_packet(packet, max_metrics=4)


def test_no_candidates_means_the_active_blueprint() -> None:
    assert PACKET.candidates == ("network",)
    assert with_packet(candidate_blueprint_ids=("a", "b")).candidates == ("a", "b")


def test_an_error_keeps_its_context_between_processes() -> None:
    with pytest.raises(InvalidPacketError) as caught:
        validate_packet(with_packet(current_epoch=-1))
    returned = pickle.loads(pickle.dumps(caught.value))
    assert (str(returned), returned.value) == (str(caught.value), -1)
