"""A budget for live parameters: what a host offers to grow, so that it never has to refuse.

Every candidate is allocated from the start, so memory does not grow with the network; what
grows is the network that is shipped and computed. Its size is the host's parameters and those
of the chosen candidate of every seed from GERMINATED to FOSSILIZED.

A host with a budget keeps it twice. Its packets offer only what still fits (`within_budget`),
so that a policy never chooses what the host would refuse; and its `CommandApplier` refuses the
command that comes nevertheless, out of a journal or from another controller.
"""

from __future__ import annotations

from dataclasses import replace

import jax

from tamiyo_jax.contracts.packet import SeedStage, SeedState, SystemStatePacket
from tamiyo_jax.host.training import HostState, Slot

__all__ = ["live_parameters", "within_budget"]

_NO_SEED = (
    SeedStage.DORMANT,
    SeedStage.CULLED,
    SeedStage.EMBARGOED,
    SeedStage.RESETTING,
)


def live_parameters(state: HostState) -> int:
    """Parameters that are part of the network: the host's, and those of grown seeds.

    A seed counts from GERMINATED to FOSSILIZED, and only the chosen candidate does.
    """
    total = _size(state.params)
    for slot in state.slots.values():
        if int(slot.state.stage) not in _NO_SEED:
            total += _size(slot.params[sorted(slot.params)[int(slot.state.blueprint)]])
    return total


def within_budget(packet: SystemStatePacket, state: HostState, budget: int) -> SystemStatePacket:
    """The packet, offering only what can be grown within a budget.

    A dormant slot in which nothing fits is told as EMBARGOED, the stage in which nothing may
    germinate, and a candidate that does not fit every slot still told as DORMANT is left out:
    whatever pair a policy chooses can be grown. The same candidate may be larger in one slot
    than in another; the one that fits the most slots decides which of them stay open.

    Args:
      packet: as it would be sent without a budget; its seeds are the host's slots.
      state: the host that it describes.
      budget: most live parameters that growth may reach.
    """
    room = budget - live_parameters(state)
    fitting = {
        seed.seed_id: _fitting(state.slots[seed.seed_id], packet.candidates, room)
        for seed in packet.seeds
        if seed.stage is SeedStage.DORMANT
    }
    commonest = max(
        packet.candidates, key=lambda one: sum(one in fits for fits in fitting.values())
    )
    opened = {seed_id for seed_id, fits in fitting.items() if commonest in fits}
    offered = tuple(
        one for one in packet.candidates if all(one in fitting[seed_id] for seed_id in opened)
    )

    def told(seed: SeedState) -> SeedState:
        barred = seed.stage is SeedStage.DORMANT and seed.seed_id not in opened
        return replace(seed, stage=SeedStage.EMBARGOED) if barred else seed

    return replace(
        packet,
        candidate_blueprint_ids=offered,
        seeds=tuple(told(seed) for seed in packet.seeds),
    )


def _fitting(slot: Slot, candidates: tuple[str, ...], room: int) -> frozenset[str]:
    """Which of the candidates are in the slot's bank and have at most `room` parameters."""
    return frozenset(
        one for one in candidates if one in slot.params and _size(slot.params[one]) <= room
    )


def _size(tree: object) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
