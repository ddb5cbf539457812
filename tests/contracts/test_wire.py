from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import message_strategies as strategies
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

import tamiyo_jax.contracts as contracts
from tamiyo_jax.contracts import (
    AdaptationCommand,
    CommandType,
    FieldReport,
    HardwareContext,
    PolicyUpdate,
    ReportOutcome,
    Rollback,
    SeedStage,
    SeedState,
    SystemStatePacket,
    TelemetryPacket,
    leyline_pb2,
    validate_packet,
)
from tamiyo_jax.errors import (
    InvalidMessageError,
    InvalidPacketError,
    InvalidReportError,
    MissingBlueprintIdError,
    PolicyUpdateRejectedError,
)

# name of the functions, strategy, message, error
MESSAGES = {
    "packet": (strategies.packets, leyline_pb2.SystemStatePacket, InvalidPacketError),
    "command": (strategies.commands, leyline_pb2.AdaptationCommand, InvalidMessageError),
    "report": (strategies.reports, leyline_pb2.FieldReport, InvalidReportError),
    "policy_update": (strategies.updates, leyline_pb2.PolicyUpdate, PolicyUpdateRejectedError),
    "telemetry": (strategies.telemetry, leyline_pb2.TelemetryPacket, InvalidMessageError),
}
GOLDEN = {
    "packet": ("leyline_system_state.bin", "system_state"),
    "command": ("leyline_command_signed.bin", "command"),
    "report": ("leyline_field_report.bin", "field_report"),
}
PACKET = SystemStatePacket("p", "r", "b", seeds=(SeedState("s", SeedStage.TRAINING),))
COMMAND = AdaptationCommand("c", CommandType.PAUSE, 5, 10)


def encode(name: str, value: object) -> bytes:
    return getattr(contracts, f"encode_{name}")(value)


def decode(name: str, data: bytes) -> object:
    return getattr(contracts, f"decode_{name}")(data)


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
def test_every_value_comes_back_from_the_wire(name: str, data: st.DataObject) -> None:
    value = data.draw(MESSAGES[name][0])
    sent = encode(name, value)
    assert decode(name, sent) == value
    assert encode(name, decode(name, sent)) == sent


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
def test_any_bytes_decode_or_raise_the_error_of_their_message(
    name: str, data: st.DataObject
) -> None:
    strategy, _, error = MESSAGES[name]
    whole = encode(name, data.draw(strategy))
    cut = data.draw(st.integers(0, len(whole)))
    sent = whole[:cut] + data.draw(st.binary(max_size=6)) + whole[cut + 1 :]
    try:
        value = decode(name, sent)
    except error:
        return
    again = encode(name, value)
    assert encode(name, decode(name, again)) == again


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_bytes_say_what_their_json_says_and_encode_to_themselves(
    name: str, golden: Path
) -> None:
    file, key = GOLDEN[name]
    sent = (golden / file).read_bytes()
    again = encode(name, decode(name, sent))
    assert again == sent
    said = json.loads((golden / "leyline.json").read_text())[key]
    message = MESSAGES[name][1].FromString(again)
    assert json_format.MessageToDict(message, preserving_proto_field_name=True) == said


def test_the_golden_packet_decodes_field_by_field(golden: Path) -> None:
    packet = contracts.decode_packet((golden / "leyline_system_state.bin").read_bytes())
    seed = SeedState("seed-0", SeedStage.TRAINING, 0.5, 2**-7, 0.25, 1, 2, {"alpha": 0.5})
    assert packet == SystemStatePacket(
        packet_id="pkt-9",
        training_run_id="run-7",
        blueprint_id="",
        current_epoch=4,
        global_step=321,
        validation_loss=0.75,
        validation_accuracy=0.5,
        training_loss=0.875,
        training_metrics={"loss": 0.875, "gradient_norm": 1.25, "hook_latency_ms": 10.0},
        seeds=(
            seed,
            dataclasses.replace(seed, seed_id="seed-1", stage=SeedStage.BLENDING, layer_depth=2),
        ),
        hardware=HardwareContext("cpu", "0", 24.0, 12.0, None, 50.0),
        source_subsystem="tolaria",
        experiment_name="exp-a",
        timestamp_ns=1_700_000_000_000_000_000,
    )
    with pytest.raises(MissingBlueprintIdError):
        validate_packet(packet)


def _v1_peer() -> dict[str, type[Message]]:
    """The messages as a Leyline v1 peer declares them: no presence, no field from 100 on."""
    file = descriptor_pb2.FileDescriptorProto()
    leyline_pb2.DESCRIPTOR.CopyToProto(file)
    for message in file.message_type:
        kept = [field for field in message.field if field.number < 100]
        real = [group for group in message.oneof_decl if not group.name.startswith("_")]
        for field in kept:
            if field.proto3_optional:
                field.ClearField("proto3_optional")
                field.ClearField("oneof_index")
        del message.field[:], message.oneof_decl[:]
        message.field.extend(kept)
        message.oneof_decl.extend(real)
    pool = descriptor_pool.DescriptorPool()
    for known in (Struct, Timestamp):
        pool.AddSerializedFile(known.DESCRIPTOR.file.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{file.package}.{message.name}")
        )
        for message in file.message_type
    }


V1 = _v1_peer()


@pytest.mark.parametrize("name", MESSAGES)
@given(data=st.data())
def test_what_a_v1_peer_writes_encodes_to_the_same_bytes(name: str, data: st.DataObject) -> None:
    strategy, message, _ = MESSAGES[name]
    ours = encode(name, data.draw(strategy))
    peer = V1[message.DESCRIPTOR.name].FromString(ours)
    peer.DiscardUnknownFields()
    # A v1 peer holds the numbers without presence, so that writing drops the zeros.
    sent = peer.SerializeToString(deterministic=True)
    assert encode(name, decode(name, sent)) == sent


def test_a_v1_peer_reads_our_values_and_a_zero_of_its_own_reads_as_absent() -> None:
    packet = dataclasses.replace(PACKET, validation_loss=0.0, training_loss=0.25)
    peer = V1["SystemStatePacket"].FromString(contracts.encode_packet(packet))
    assert (peer.validation_loss, peer.training_loss) == (0.0, 0.25)
    peer.DiscardUnknownFields()
    returned = contracts.decode_packet(peer.SerializeToString())
    assert (returned.validation_loss, returned.training_loss) == (None, 0.25)
    assert contracts.decode_packet(contracts.encode_packet(packet)).validation_loss == 0.0


@pytest.mark.parametrize("name", [name for name in MESSAGES if name != "telemetry"])
@pytest.mark.parametrize("version", [0, 2])
def test_another_version_is_refused(name: str, version: int) -> None:
    _, message, error = MESSAGES[name]
    with pytest.raises(error, match="version") as caught:
        decode(name, message(version=version).SerializeToString())
    assert (caught.value.value, caught.value.reason) == (version, "version_mismatch")


@pytest.mark.parametrize("name", MESSAGES)
def test_malformed_bytes_name_the_message(name: str) -> None:
    _, message, error = MESSAGES[name]
    with pytest.raises(error, match=message.DESCRIPTOR.name) as caught:
        decode(name, b"\xff\xff")
    assert caught.value.reason == "invalid_payload"


def test_equal_maps_give_equal_bytes_whatever_their_order() -> None:
    forward = {f"m{index}": float(index) for index in range(50)}
    backward = dict(reversed(forward.items()))
    one, other = (
        dataclasses.replace(PACKET, training_metrics=metrics) for metrics in (forward, backward)
    )
    assert contracts.encode_packet(one) == contracts.encode_packet(other)


def test_a_nan_loss_travels() -> None:
    sent = contracts.encode_packet(dataclasses.replace(PACKET, validation_loss=math.nan))
    assert math.isnan(contracts.decode_packet(sent).validation_loss)


def test_a_time_keeps_every_nanosecond() -> None:
    issued = 1_700_000_000_123_456_789
    sent = contracts.encode_command(dataclasses.replace(COMMAND, issued_at_ns=issued))
    assert contracts.decode_command(sent).issued_at_ns == issued
    assert leyline_pb2.AdaptationCommand.FromString(sent).issued_at.ToNanoseconds() == issued


def test_nanoseconds_beyond_a_second_are_refused() -> None:
    message = leyline_pb2.AdaptationCommand(version=1)
    message.issued_at.nanos = 1_000_000_000
    with pytest.raises(InvalidMessageError, match=r"issued_at_ns\.nanos"):
        contracts.decode_command(message.SerializeToString())


def test_an_unknown_enum_value_names_its_place() -> None:
    message = leyline_pb2.SystemStatePacket(version=1)
    message.seed_states.add(seed_id="a", stage=1)
    message.seed_states.add(seed_id="b", stage=57)
    with pytest.raises(InvalidPacketError, match="57") as caught:
        contracts.decode_packet(message.SerializeToString())
    assert caught.value.field == "seeds[1].stage"


def test_a_rollback_travels_as_a_struct_with_its_checkpoint() -> None:
    command = dataclasses.replace(COMMAND, payload=Rollback("step-40"))
    message = leyline_pb2.AdaptationCommand.FromString(contracts.encode_command(command))
    assert json_format.MessageToDict(message.rollback_payload) == {"checkpoint": "step-40"}


@pytest.mark.parametrize("payload", [{}, {"checkpoint": 3}, {"checkpoint": "a", "more": "b"}])
def test_a_rollback_that_says_anything_else_is_refused(payload: dict[str, object]) -> None:
    message = leyline_pb2.AdaptationCommand(version=1)
    message.rollback_payload.SetInParent()
    message.rollback_payload.update(payload)
    with pytest.raises(InvalidMessageError, match="checkpoint"):
        contracts.decode_command(message.SerializeToString())


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("packet", dataclasses.replace(PACKET, current_epoch=2**32), "current_epoch"),
        ("packet", dataclasses.replace(PACKET, global_step=-1), "global_step"),
        ("packet", dataclasses.replace(PACKET, validation_loss=10**400), "validation_loss"),
        ("packet", dataclasses.replace(PACKET, current_epoch=10**5000), "current_epoch"),
        ("packet", dataclasses.replace(PACKET, packet_id=None), "packet_id"),
        ("packet", dataclasses.replace(PACKET, packet_id="\ud800"), "packet_id"),
        ("packet", dataclasses.replace(PACKET, training_metrics={"a": "b"}), "training_metrics"),
        (
            "packet",
            dataclasses.replace(PACKET, seeds=(PACKET.seeds[0], SeedState("b", 99))),
            "seeds[1].stage",
        ),
        ("command", dataclasses.replace(COMMAND, payload="stop"), "payload"),
        ("command", dataclasses.replace(COMMAND, payload=Rollback(None)), "payload.checkpoint"),
        ("report", FieldReport("r", "", "", "", "", ReportOutcome.NEUTRAL, 0.5), "issued_at_ns"),
        ("policy_update", PolicyUpdate("p", "r", 1, "v", "text", "d"), "payload"),
    ],
)
def test_a_value_that_does_not_fit_is_named(name: str, value: object, field: str) -> None:
    with pytest.raises(MESSAGES[name][2]) as caught:
        encode(name, value)
    assert caught.value.field == field


@pytest.mark.parametrize("missing", ["timestamp", "system_health"])
def test_telemetry_without_time_or_health_is_refused(missing: str) -> None:
    message = leyline_pb2.TelemetryPacket(packet_id="p")
    message.timestamp.SetInParent()
    message.system_health.SetInParent()
    assert isinstance(contracts.decode_telemetry(message.SerializeToString()), TelemetryPacket)
    message.ClearField(missing)
    with pytest.raises(InvalidMessageError, match="required"):
        contracts.decode_telemetry(message.SerializeToString())


@pytest.mark.parametrize(
    ("kind", "name", "prefix"),
    [
        (contracts.SeedStage, "SeedLifecycleStage", "SEED_STAGE_"),
        (contracts.CommandType, "CommandType", "COMMAND_"),
        (contracts.SeedOperation, "SeedOperation", "SEED_OP_"),
        (contracts.CircuitBreakerState, "CircuitBreakerState", "CIRCUIT_STATE_"),
        (contracts.HealthStatus, "HealthStatus", "HEALTH_STATUS_"),
        (contracts.Priority, "MessagePriority", "MESSAGE_PRIORITY_"),
        (contracts.TelemetryLevel, "TelemetryLevel", "TELEMETRY_LEVEL_"),
        (contracts.ReportOutcome, "FieldReportOutcome", "FIELD_REPORT_OUTCOME_"),
        (contracts.BlueprintTier, "BlueprintTier", "BLUEPRINT_TIER_"),
    ],
)
def test_python_enums_are_the_wire_enums_without_their_prefix(
    kind: type, name: str, prefix: str
) -> None:
    wire = leyline_pb2.DESCRIPTOR.enum_types_by_name[name].values_by_name
    assert {prefix + member.name: member.value for member in kind} == {
        key: value.number for key, value in wire.items()
    }


@pytest.mark.parametrize("source", ["contracts/leyline.proto", "storage/records.proto"])
def test_generated_modules_are_those_of_the_proto_file(tmp_path: Path, source: str) -> None:
    root = Path(contracts.__file__).parents[2]
    source = f"tamiyo_jax/{source}"
    arguments = ["-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", source]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=root, check=True)
    for suffix in ("_pb2.py", "_pb2.pyi"):
        name = source.replace(".proto", suffix)
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
