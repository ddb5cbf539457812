"""The training side: measuring a run, growing seeds in it, and applying commands to it."""

from tamiyo_jax.host.apply import Checkpointer, CommandApplier, Decided
from tamiyo_jax.host.blending import (
    METHODS,
    Blend,
    BlendMode,
    BlendSchedule,
    Channel,
    Confidence,
    alpha_at,
    blend_metrics,
)
from tamiyo_jax.host.blueprint_of import blueprint_of
from tamiyo_jax.host.budget import live_parameters, within_budget
from tamiyo_jax.host.checkpoints import HostCheckpoints, load_tree, save_tree
from tamiyo_jax.host.hardware import Hardware, HardwareMeter
from tamiyo_jax.host.memory import MemoryCheckpoints
from tamiyo_jax.host.monitor import Statistics, layer_names, monitor, statistics
from tamiyo_jax.host.packets import SeedMeasurements, packet_from, seed_state
from tamiyo_jax.host.reading import LateReader
from tamiyo_jax.host.scale import LIMITS, scale_by, scale_of, tamiyo_scale
from tamiyo_jax.host.seed_library import FAMILIES, SeedBank, seed_bank
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
    loss_of,
    train_step,
)

__all__ = [
    "FAMILIES",
    "LIMITS",
    "METHODS",
    "TRANSITIONS",
    "Bank",
    "Blend",
    "BlendMode",
    "BlendSchedule",
    "Channel",
    "Checkpointer",
    "CommandApplier",
    "Confidence",
    "Decided",
    "Gate",
    "Hardware",
    "HardwareMeter",
    "Host",
    "HostCheckpoints",
    "HostState",
    "LateReader",
    "MemoryCheckpoints",
    "Seed",
    "SeedBank",
    "SeedMeasurements",
    "SeedSlot",
    "Slot",
    "SlotState",
    "Statistics",
    "StepMetrics",
    "Timing",
    "alpha_at",
    "blend_metrics",
    "blueprint_ids",
    "blueprint_of",
    "contribution",
    "dormant",
    "enter",
    "gates_of",
    "init_host",
    "layer_names",
    "linen_seed",
    "live_parameters",
    "load_tree",
    "loss_of",
    "monitor",
    "packet_from",
    "save_tree",
    "scale_by",
    "scale_of",
    "seed_bank",
    "seed_state",
    "slot_apply",
    "slot_init",
    "slot_variables",
    "statistics",
    "tamiyo_scale",
    "tick",
    "train_step",
    "transition",
    "within_budget",
]
