"""Learning a policy: tasks, an environment that is training itself, and imitation."""

from tamiyo_jax.learn._architecture import Architecture, Batch
from tamiyo_jax.learn._checkpoint import save_policy
from tamiyo_jax.learn._cloning import Agreement, agreement, clone
from tamiyo_jax.learn._dataset import Dataset, dataset, select_runs
from tamiyo_jax.learn._environment import EnvAction, EnvState, HostEnv, Rent
from tamiyo_jax.learn._fitting import FitSettings, Targets, fit, fit_loss
from tamiyo_jax.learn._imitation import imitation_targets
from tamiyo_jax.learn._observation import packet_of
from tamiyo_jax.learn._rules import Rules, heuristic_rules, new_memory, no_rules, rule_action
from tamiyo_jax.learn._tasks import (
    HELD_OUT,
    TRAINING,
    Family,
    TaskData,
    draw,
    draw_many,
    find_family,
)

__all__ = [
    "HELD_OUT",
    "TRAINING",
    "Agreement",
    "Architecture",
    "Batch",
    "Dataset",
    "EnvAction",
    "EnvState",
    "Family",
    "FitSettings",
    "HostEnv",
    "Rent",
    "Rules",
    "Targets",
    "TaskData",
    "agreement",
    "clone",
    "dataset",
    "draw",
    "draw_many",
    "find_family",
    "fit",
    "fit_loss",
    "heuristic_rules",
    "imitation_targets",
    "new_memory",
    "no_rules",
    "packet_of",
    "rule_action",
    "save_policy",
    "select_runs",
]
