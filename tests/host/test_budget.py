"""A host with a budget offers what fits, and refuses what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
import pytest
from host.tiny_host import make_host, make_state
from hypothesis import given
from hypothesis import strategies as st
from making import make_packet, make_seed, open_tamiyo

from tamiyo_jax import growth, host
from tamiyo_jax.contracts import SeedStage

OWN = 3 * 4 + 4 + 4 * 2
IDS = ("small", "middle", "large")
SIZES = {"small": 1, "middle": 2, "large": 4}
STAGES = (SeedStage.DORMANT, SeedStage.TRAINING, SeedStage.FOSSILIZED, SeedStage.CULLED)


class Sized(NamedTuple):
    """A host, and where it is."""

    host: host.Host
    state: host.HostState

    def limit(self, packet, room: int):
        budget = host.live_parameters(self.state) + room
        return host.limit_to_budget(packet, self.state, replace(self.host, parameter_budget=budget))


def make_slots(
    widths: dict[str, int],
    stages: dict[str, SeedStage] | None = None,
    sizes: dict[str, int] = SIZES,
) -> Sized:
    """A host of `OWN` parameters; a candidate has its size times the width of its slot."""
    made = make_host()

    def bank(width: int):
        return {name: {"w": jnp.zeros(size * width)} for name, size in sizes.items()}

    slots = {}
    for name, width in widths.items():
        stage = (stages or {}).get(name, SeedStage.DORMANT)
        grows = stage in (SeedStage.GERMINATED, SeedStage.TRAINING, SeedStage.FOSSILIZED)
        params = {"middle": bank(width)["middle"]} if grows else {}
        slots[name] = host.Slot(growth.enter(growth.dormant(), jnp.int32(stage)), params, ())
    made = replace(
        made, init_seeds=lambda key: {name: bank(width) for name, width in widths.items()}
    )
    return Sized(made, make_state(make_host())._replace(slots=slots))


def packet_of(sized: Sized):
    slots = sized.state.slots.items()
    seeds = [make_seed(name, SeedStage(int(slot.state.stage))) for name, slot in slots]
    return make_packet(candidate_blueprint_ids=IDS, seeds=tuple(seeds))


def read_offer(sized: Sized, room: int):
    """The slots still reported as dormant and the candidates, with `room` parameters left."""
    packet = sized.limit(packet_of(sized), room)
    slots = [seed.seed_id for seed in packet.seeds if seed.stage is SeedStage.DORMANT]
    return slots, packet.candidate_blueprint_ids


@pytest.mark.parametrize(
    ("stage", "counts"),
    [
        (SeedStage.DORMANT, False),
        (SeedStage.GERMINATED, True),
        (SeedStage.FOSSILIZED, True),
        (SeedStage.CULLED, False),
        (SeedStage.EMBARGOED, False),
    ],
)
def test_the_host_and_the_chosen_candidate_of_what_has_germinated_are_live(stage, counts):
    state = make_slots({"a": 10}, {"a": stage}).state
    assert host.live_parameters(state) == OWN + 20 * counts


def test_without_a_budget_a_packet_stays_as_it_is():
    sized = make_slots({"a": 10})
    packet = packet_of(sized)
    assert host.limit_to_budget(packet, sized.state, sized.host) is packet


def test_with_room_enough_everything_is_offered():
    assert read_offer(make_slots({"a": 10, "b": 10}), 40) == (["a", "b"], IDS)


def test_what_does_not_fit_is_not_offered():
    assert read_offer(make_slots({"a": 10, "b": 10}), 39) == (["a", "b"], ("small", "middle"))


def test_where_nothing_fits_the_seed_is_reported_as_embargoed():
    state = make_slots({"a": 10, "b": 100})
    assert read_offer(state, 25) == (["a"], ("small", "middle"))
    packet = state.limit(packet_of(state), 0)
    assert [seed.stage for seed in packet.seeds] == [SeedStage.EMBARGOED] * 2


@given(
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    stages=st.lists(st.sampled_from(STAGES), min_size=4, max_size=4),
    room=st.integers(-5, 130),
)
def test_whatever_is_offered_fits_and_nothing_is_offered_only_where_nothing_fits(
    widths, stages, room
):
    names = dict(zip("abcd", widths, strict=False))
    state = make_slots(names, dict(zip("abcd", stages, strict=True)))
    slots, candidates = read_offer(state, room)
    assert all(SIZES[candidate] * names[name] <= room for name in slots for candidate in candidates)
    assert candidates
    slots_ = state.state.slots
    dormant = [name for name in names if int(slots_[name].state.stage) == SeedStage.DORMANT]
    assert bool(slots) == any(names[name] <= room for name in dormant)


def test_only_dormant_seeds_and_the_candidates_are_reported_differently():
    state = make_slots({"a": 10, "b": 10}, {"b": SeedStage.TRAINING})
    before = packet_of(state)
    after = state.limit(before, -OWN)
    assert after.seeds[1] == before.seeds[1]
    assert after.training_metrics == before.training_metrics


@pytest.mark.parametrize(("room", "grows"), [(0, None), (20, "grow-a"), (40, "grow-b")])
def test_a_controller_on_a_plateau_grows_what_fits_and_waits_where_nothing_does(
    room, grows, tmp_path
):
    sized = make_slots({"s0": 10}, sizes={"grow-a": 2, "grow-b": 4})
    # The larger one is the first in the rotation.
    plateau = [
        make_packet(step, seeds=(make_seed(),), candidate_blueprint_ids=("grow-b", "grow-a"))
        for step in range(10)
    ]
    with open_tamiyo(tmp_path) as tamiyo:
        decisions = [tamiyo.step(sized.limit(packet, room)) for packet in plateau]
    germinations = [decision for decision in decisions if decision.action == "GERMINATE"]
    assert {germination.command.payload.blueprint_id for germination in germinations} == (
        {grows} - {None}
    )
