"""The quick test of types agrees with the one that names what is wrong."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_strategies import packets

from tamiyo_jax.contracts import HardwareContext, SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.contracts._checks import Checks, conforms_to
from tamiyo_jax.errors import InvalidPacketError

CHECK = Checks(InvalidPacketError)
oddities = st.sampled_from(
    [None, True, 7, -1, 10**400, 0.5, math.nan, "", "é", "\ud800", b"x", (), [], {}, ("a",), (3,),
     ({},), {"a": 1}, {"a": "b"}, {"a": 10**400}, {3: 0.5}, {"\ud800": 0.5}, SeedStage.TRAINING,
     SeedState("s", 3), HardwareContext("gpu"), HardwareContext(None), (SeedState("s", None),)]
)  # fmt: skip
names = st.sampled_from([field.name for field in dataclasses.fields(SystemStatePacket)])


@given(packets)
def test_a_packet_of_the_annotated_types_conforms(packet):
    CHECK.kind("", packet, SystemStatePacket)


@given(packets, names, oddities)
def test_what_the_quick_test_lets_through_the_thorough_one_does_too(packet, name, oddity):
    packet = dataclasses.replace(packet, **{name: oddity})
    if conforms_to(SystemStatePacket)(packet):
        CHECK._kind("", packet, SystemStatePacket)


def test_a_mapping_that_is_no_dict_and_a_float_of_another_class_are_looked_at_closer():
    class Loss(float):
        pass

    packet = SystemStatePacket("p", "r", "b", training_metrics={"loss": Loss(0.5)})
    assert not conforms_to(SystemStatePacket)(packet)
    CHECK.kind("", packet, SystemStatePacket)
    with pytest.raises(InvalidPacketError):
        CHECK.kind("", dataclasses.replace(packet, training_loss="0.5"), SystemStatePacket)
