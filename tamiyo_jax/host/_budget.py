"""A budget for live parameters: what a host offers to grow, so that it never has to refuse.

What grows is the network that is shipped, computed and kept in memory. Its size is that of the
host's parameters and of every seed from GERMINATED to FOSSILIZED.

A host with a budget keeps it twice. Its packets offer only what still fits (`limit_to_budget`),
so that a policy never chooses what the host would refuse; and its `CommandApplier` refuses the
command that comes nevertheless, out of a journal or from another controller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from tamiyo_jax.contracts import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.host._seeding import banks_of
from tamiyo_jax.host._training import Host, HostState

__all__ = ["limit_to_budget", "live_parameters", "size_of"]

Params = Any


def live_parameters(state: HostState) -> int:
    """Parameters of the network: the host's, and those of its seeds from GERMINATED on."""
    return size_of(state.params) + sum(size_of(slot.params) for slot in state.slots.values())


def limit_to_budget(packet: SystemStatePacket, state: HostState, host: Host) -> SystemStatePacket:
    """The packet, offering only what can be grown within a budget.

    A dormant slot in which nothing fits is reported as EMBARGOED, the stage in which nothing may
    germinate, and a candidate that does not fit every slot still reported as DORMANT is left out:
    whatever pair a policy chooses can be grown. The same candidate may be larger in one slot
    than in another; the one that fits the most slots decides which of them stay open.

    Args:
      packet: as it would be sent without a budget; its seeds are the host's slots.
      state: the host that it describes.
      host: what is trained; without a budget the packet stays as it is.
    """
    if host.parameter_budget is None:
        return packet
    room = host.parameter_budget - live_parameters(state)
    banks = banks_of(host)
    fitting = {
        seed.seed_id: _find_fitting(banks[seed.seed_id], packet.candidates, room)
        for seed in packet.seeds
        if seed.stage is SeedStage.DORMANT
    }
    commonest = max(
        packet.candidates, key=lambda candidate: sum(candidate in fits for fits in fitting.values())
    )
    opened = {seed_id for seed_id, fits in fitting.items() if commonest in fits}
    offered = tuple(
        candidate
        for candidate in packet.candidates
        if all(candidate in fitting[seed_id] for seed_id in opened)
    )

    def bar_full(seed: SeedState) -> SeedState:
        barred = seed.stage is SeedStage.DORMANT and seed.seed_id not in opened
        return replace(seed, stage=SeedStage.EMBARGOED) if barred else seed

    return replace(
        packet,
        candidate_blueprint_ids=offered,
        seeds=tuple(bar_full(seed) for seed in packet.seeds),
    )


def _find_fitting(
    bank: Mapping[str, Params], candidates: tuple[str, ...], room: int
) -> frozenset[str]:
    """Which of the candidates are in the bank and have at most `room` parameters."""
    return frozenset(
        candidate
        for candidate in candidates
        if candidate in bank and size_of(bank[candidate]) <= room
    )


def size_of(tree: object) -> int:
    """How many numbers the arrays of a tree hold, or the shapes in it stand for."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
