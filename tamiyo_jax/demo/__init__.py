"""The demonstration: a small network on real digits, grown by Tamiyo."""

from tamiyo_jax.demo._digits import digits_task
from tamiyo_jax.demo._progress import EpochProgress
from tamiyo_jax.demo._replay import DemoReplay, replay_demo
from tamiyo_jax.demo._report import draw, summary_table
from tamiyo_jax.demo._results import DemoSummary, Row, Variant
from tamiyo_jax.demo._run import DemoSettings, run_demo
from tamiyo_jax.demo._settings import RESULT, RunSettings, load_planned_steps, load_settings

__all__ = [
    "RESULT",
    "DemoReplay",
    "DemoSettings",
    "DemoSummary",
    "EpochProgress",
    "Row",
    "RunSettings",
    "Variant",
    "digits_task",
    "draw",
    "load_planned_steps",
    "load_settings",
    "replay_demo",
    "run_demo",
    "summary_table",
]
