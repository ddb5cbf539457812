"""Signals and the limits of their rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from making import make_config
from report.runs import decide_run, packets

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.report import read_run, render_page
from tamiyo_jax.report._signals import SIGNALS, Signal, divide_by_limits, read_limits
from tamiyo_jax.risk import rules_markdown

RULES = rules_markdown()


@pytest.mark.parametrize("one", SIGNALS, ids=lambda one: one.name)
def test_a_signal_and_its_limit_are_those_of_a_rule(one: Signal):
    limit = getattr(RiskConfig(), one.limit)
    assert any(f"{one.name} {sign} {limit:g}" in RULES for sign in ">≥")


def test_limits_are_those_that_the_run_was_controlled_with(tmp_path: Path):
    config = make_config(risk={"hook_budget_ms": 4.0})
    run = read_run(decide_run(tmp_path, packets(3), config=config))
    shares = divide_by_limits(run, read_limits(run))
    np.testing.assert_allclose(shares["hook_latency_ms (limit 4)"], 0.25)


def test_a_run_that_is_compared_with_itself_shows_the_signals_of_that(tmp_path: Path):
    config = make_config(risk={"detection": "relative"})
    some = [
        replace(packet, training_metrics={**packet.training_metrics, "sustained_rise": 0.205})
        for packet in packets(3)
    ]
    run = read_run(decide_run(tmp_path, some, config=config))
    shares = divide_by_limits(run, read_limits(run))
    np.testing.assert_allclose(shares["sustained_rise (limit 0.41)"], 0.5, rtol=1e-6)
    assert not any(name.startswith(("loss_delta", "hook_latency_ms")) for name in shares)


def test_the_page_says_which_settings_are_not_the_default(tmp_path: Path):
    config = make_config(risk={"hook_budget_ms": 4.0})
    content = render_page([read_run(decide_run(tmp_path, packets(1), config=config))], made_ns=1)
    changed = content.partition("Settings that are not the default")[2].partition("<details>")[0]
    assert "<td>risk.hook_budget_ms</td><td>4.0</td><td>50.0</td>" in changed
    assert "loss_spike" not in changed
