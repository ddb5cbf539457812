"""The network in training: measuring it, describing it, and applying commands to it."""

from tamiyo_jax.host._apply import Checkpointer, CommandApplier, DecisionLike
from tamiyo_jax.host._blueprint_of import blueprint_of
from tamiyo_jax.host._budget import limit_to_budget, live_parameters
from tamiyo_jax.host._checkpoints import HostCheckpoints, load_tree, save_tree
from tamiyo_jax.host._detector import detect
from tamiyo_jax.host._disk import DiskCheckpoints
from tamiyo_jax.host._hardware import Hardware, HardwareMeter
from tamiyo_jax.host._memory import Held, MemoryCheckpoints, is_on_accelerator
from tamiyo_jax.host._monitor import (
    MonitorState,
    Refusals,
    Statistics,
    guarded,
    layer_names,
    monitor,
    statistics,
    unless_refused,
)
from tamiyo_jax.host._packets import (
    MEASURED_STAGES,
    RISK_SCALE,
    SeedMeasurements,
    packet_from,
    seed_state,
)
from tamiyo_jax.host._probe import probe
from tamiyo_jax.host._reading import LateReader
from tamiyo_jax.host._scale import LIMITS, scale_by, scale_of, tamiyo_scale
from tamiyo_jax.host._seed_library import FAMILIES, SeedBank, seed_bank
from tamiyo_jax.host._seeding import banks_of, operate
from tamiyo_jax.host._several import all_statistics
from tamiyo_jax.host._signals import Signals, no_signals
from tamiyo_jax.host._training import (
    Host,
    HostState,
    Slot,
    StepMetrics,
    contribution,
    gates_of,
    init_host,
    loss_of,
    seeds_of,
    train_step,
)
from tamiyo_jax.host._windows import Detector, new_detector

__all__ = [
    "FAMILIES",
    "LIMITS",
    "MEASURED_STAGES",
    "RISK_SCALE",
    "Checkpointer",
    "CommandApplier",
    "DecisionLike",
    "Detector",
    "DiskCheckpoints",
    "Hardware",
    "HardwareMeter",
    "Held",
    "Host",
    "HostCheckpoints",
    "HostState",
    "LateReader",
    "MemoryCheckpoints",
    "MonitorState",
    "Refusals",
    "SeedBank",
    "SeedMeasurements",
    "Signals",
    "Slot",
    "Statistics",
    "StepMetrics",
    "all_statistics",
    "banks_of",
    "blueprint_of",
    "contribution",
    "detect",
    "gates_of",
    "guarded",
    "init_host",
    "is_on_accelerator",
    "layer_names",
    "limit_to_budget",
    "live_parameters",
    "load_tree",
    "loss_of",
    "monitor",
    "new_detector",
    "no_signals",
    "operate",
    "packet_from",
    "probe",
    "save_tree",
    "scale_by",
    "scale_of",
    "seed_bank",
    "seed_state",
    "seeds_of",
    "statistics",
    "tamiyo_scale",
    "train_step",
    "unless_refused",
]
