"""The training side: measuring a run, growing seeds in it, and applying commands to it."""

from tamiyo_jax.host.apply import Checkpointer, CommandApplier, Decided
from tamiyo_jax.host.blending import METHODS, BlendMode, BlendSchedule, alpha_at
from tamiyo_jax.host.checkpoints import HostCheckpoints, load_tree, save_tree
from tamiyo_jax.host.monitor import Statistics, layer_names, monitor, statistics
from tamiyo_jax.host.packets import SeedMeasurements, packet_from, seed_state
from tamiyo_jax.host.scale import LIMITS, scale_by, scale_of, tamiyo_scale
from tamiyo_jax.host.seeds import TRANSITIONS, SlotState, Timing, dormant, enter, tick, transition
from tamiyo_jax.host.slot import (
    Bank,
    Gate,
    Seed,
    SeedSlot,
    blueprint_ids,
    linen_seed,
    slot_apply,
    slot_init,
    slot_variables,
)
from tamiyo_jax.host.training import (
    Host,
    HostState,
    Slot,
    StepMetrics,
    contribution,
    gates_of,
    init_host,
    live_parameters,
    train_step,
)

__all__ = [
    "LIMITS",
    "METHODS",
    "TRANSITIONS",
    "Bank",
    "BlendMode",
    "BlendSchedule",
    "Checkpointer",
    "CommandApplier",
    "Decided",
    "Gate",
    "Host",
    "HostCheckpoints",
    "HostState",
    "Seed",
    "SeedMeasurements",
    "SeedSlot",
    "Slot",
    "SlotState",
    "Statistics",
    "StepMetrics",
    "Timing",
    "alpha_at",
    "blueprint_ids",
    "contribution",
    "dormant",
    "enter",
    "gates_of",
    "init_host",
    "layer_names",
    "linen_seed",
    "live_parameters",
    "load_tree",
    "monitor",
    "packet_from",
    "save_tree",
    "scale_by",
    "scale_of",
    "seed_state",
    "slot_apply",
    "slot_init",
    "slot_variables",
    "statistics",
    "tamiyo_scale",
    "tick",
    "train_step",
    "transition",
]
