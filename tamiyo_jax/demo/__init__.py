"""The main job on real data: a small network, real digits, and Tamiyo in the loop."""

from tamiyo_jax.demo.begun import RESULT, Begun, begun_with
from tamiyo_jax.demo.progress import EpochProgress
from tamiyo_jax.demo.replay import DemoReplay, replay_demo
from tamiyo_jax.demo.report import draw, summary_table
from tamiyo_jax.demo.run import DemoSettings, DemoSummary, Row, Variant, run_demo

__all__ = [
    "RESULT",
    "Begun",
    "DemoReplay",
    "DemoSettings",
    "DemoSummary",
    "EpochProgress",
    "Row",
    "Variant",
    "begun_with",
    "draw",
    "replay_demo",
    "run_demo",
    "summary_table",
]
