"""Learning a policy: tasks, an environment that is training itself, branching and imitation."""

from tamiyo_jax.learn._architecture import Architecture, Batch
from tamiyo_jax.learn._branching import Branches, Prices, Setting, branch, targets_of
from tamiyo_jax.learn._checkpoint import PARAMS, add_to_card, save_policy
from tamiyo_jax.learn._cloning import Agreement, agreement, clone
from tamiyo_jax.learn._contest import Outcome, contest, follow_network, follow_rules
from tamiyo_jax.learn._dataset import Dataset, dataset, select_runs
from tamiyo_jax.learn._environment import EnvAction, EnvState, HostEnv, Rent
from tamiyo_jax.learn._evaluation import (
    LEARNED,
    Interval,
    Rivals,
    choose_rivals,
    compare,
    contenders,
    evaluate,
    evaluate_policy,
    interval_over_seeds,
    rivals_from_json,
    summarise,
    summarise_policy,
)
from tamiyo_jax.learn._fitting import FitSettings, Targets, fit, fit_loss
from tamiyo_jax.learn._imitation import imitation_targets
from tamiyo_jax.learn._learner import LearnSettings, hesitate, learn
from tamiyo_jax.learn._observation import packet_of
from tamiyo_jax.learn._playing import Pilot, Run, begin, play
from tamiyo_jax.learn._ppo import PpoSettings, improve
from tamiyo_jax.learn._reliability import Bin, Reliability, bins_of, measure_reliability
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
from tamiyo_jax.learn._teaching import Plan, choose_plans, lessons
from tamiyo_jax.learn._tuning import (
    Headroom,
    Schedule,
    drawn_schedules,
    headroom,
    rate_schedules,
    rules_of,
)

__all__ = [
    "HELD_OUT",
    "LEARNED",
    "PARAMS",
    "TRAINING",
    "Agreement",
    "Architecture",
    "Batch",
    "Bin",
    "Branches",
    "Dataset",
    "EnvAction",
    "EnvState",
    "Family",
    "FitSettings",
    "Headroom",
    "HostEnv",
    "Interval",
    "LearnSettings",
    "Outcome",
    "Pilot",
    "Plan",
    "PpoSettings",
    "Prices",
    "Reliability",
    "Rent",
    "Rivals",
    "Rules",
    "Run",
    "Schedule",
    "Setting",
    "Targets",
    "TaskData",
    "add_to_card",
    "agreement",
    "begin",
    "bins_of",
    "branch",
    "choose_plans",
    "choose_rivals",
    "clone",
    "compare",
    "contenders",
    "contest",
    "dataset",
    "draw",
    "draw_many",
    "drawn_schedules",
    "evaluate",
    "evaluate_policy",
    "find_family",
    "fit",
    "fit_loss",
    "follow_network",
    "follow_rules",
    "headroom",
    "hesitate",
    "heuristic_rules",
    "imitation_targets",
    "improve",
    "interval_over_seeds",
    "learn",
    "lessons",
    "measure_reliability",
    "new_memory",
    "no_rules",
    "packet_of",
    "play",
    "rate_schedules",
    "rivals_from_json",
    "rule_action",
    "rules_of",
    "save_policy",
    "select_runs",
    "summarise",
    "summarise_policy",
    "targets_of",
]
