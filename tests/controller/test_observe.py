"""What the controller knows of a packet before it asks the policy."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import make_blueprint, make_config, make_packet

from tamiyo_jax.contracts import CircuitBreakerState, SystemStatePacket
from tamiyo_jax.controller import Situation, initial_state, observe, observe_encoded
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.graph import encode_blueprint, encode_packet, layout_for

CONFIG = make_config(packet={"seedless": True})
HOST = make_blueprint()
GROWN = {
    name: make_blueprint(name, quarantine_only=name == "grow-b") for name in ("grow-a", "grow-b")
}
METRICS = (
    *("loss", "gradient_norm", "samples_per_s", "hook_latency_ms", "epochs_total"),
    *("layer/L0/latency_ms", "layer/L1/gradient_norm", "activation/A0/saturation_rate"),
    *("layer/of another network/latency_ms", "restorable/step-00000010"),
)
NUMBERS = st.sampled_from([0.0, 1.5, math.nan, math.inf])

packets = st.builds(
    make_packet,
    seeds=st.just(()),
    candidate_blueprint_ids=st.sampled_from([(), ("grow-a",), ("grow-a", "grow-b"), ("host",)]),
    training_metrics=st.dictionaries(st.sampled_from(METRICS), NUMBERS),
    validation_loss=st.none() | NUMBERS,
    training_loss=st.none() | NUMBERS,
    optimizer_id=st.sampled_from([None, "adam"]),
)


@given(kinds=st.lists(packets, min_size=1, max_size=4), strict=st.booleans())
@settings(max_examples=60)
def test_what_is_remembered_of_packets_alike_is_what_each_would_say(
    kinds: list[SystemStatePacket], strict: bool
) -> None:
    config = make_config(packet={"seedless": True}, graph={"strict_features": strict})
    arrays = encode_blueprint(HOST, layout_for(HOST, config.graph), config=config.graph)
    state = initial_state({})
    for index, kind in enumerate(kinds * 4):
        numbers = dict.fromkeys(kind.training_metrics, float(index))
        packet = dataclasses.replace(kind, training_metrics=numbers) if index % 2 else kind
        candidates = tuple(GROWN.get(name, HOST) for name in packet.candidates)
        try:
            anew = observe(config, state, packet, HOST, candidates)
        except TamiyoError as error:
            with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
                observe_encoded(config, state, packet, arrays, candidates)
            continue
        again = observe_encoded(config, state, packet, arrays, candidates)
        check_same(again, anew)
        breaker = CircuitBreakerState(1 + index // 8)
        state = dataclasses.replace(state, registries=again.registries, host_breaker=breaker)


def check_same(again: Situation, anew: Situation) -> None:
    assert again.coverage == anew.coverage
    assert again.total_coverage == anew.total_coverage
    assert (again.missing, again.truncated) == (anew.missing, anew.truncated)
    assert again.events == anew.events
    assert again.registries.to_plain() == anew.registries.to_plain()
    for left, right in zip(again.legality, anew.legality, strict=True):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(again.observation.raw, anew.observation.raw, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_graph_that_nobody_reads_is_encoded_for_the_first_of_many_packets_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[str] = []

    def note(packet: SystemStatePacket, *args: Any, **kwargs: Any) -> object:
        encoded.append(packet.packet_id)
        return encode_packet(packet, *args, **kwargs)

    monkeypatch.setattr("tamiyo_jax.controller._observe.encode_packet", note)
    arrays = encode_blueprint(HOST, layout_for(HOST, CONFIG.graph), config=CONFIG.graph)
    state = initial_state({})
    candidates = tuple(GROWN.values())
    situations: list[Situation] = []
    for step in range(5):
        packet = make_packet(step, seeds=())
        situations.append(observe_encoded(CONFIG, state, packet, arrays, candidates))
        state = dataclasses.replace(state, registries=situations[-1].registries)
        assert situations[-1].total_coverage > 0
    # The registries know the names of the blueprints only after the first.
    assert encoded == ["packet-0", "packet-1"]
    assert situations[-1].observation.packet.packet_id == "packet-4"
    assert encoded[2:] == ["packet-4"]
