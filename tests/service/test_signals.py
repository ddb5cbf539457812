"""Real signals in a real process: handlers may close, flush and set conservative mode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from making import make_packet, open_tamiyo

from tamiyo_jax.contracts import ReportOutcome
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.replay import read_history
from tamiyo_jax.storage import OperatorRecord, StepRecord

HERE = Path(__file__).parent


@pytest.mark.parametrize(("manner", "status"), [("return", 0), ("exit", 3)])
def test_a_handler_that_closes_during_a_step_never_hangs_and_everything_is_on_record(
    tmp_path: Path, manner: str, status: int
) -> None:
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, str(HERE / "preempted.py"), str(tmp_path), manner],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == status, done.stderr
    *steps, by_hand = read_history(tmp_path)
    assert isinstance(by_hand, OperatorRecord)
    assert by_hand.action == "conservative_on"
    outcomes = [step.report.outcome for step in steps if isinstance(step, StepRecord)]
    assert outcomes
    assert (ReportOutcome.ABORTED in outcomes) == (manner == "exit")
    with open_tamiyo(tmp_path) as tamiyo:
        assert tamiyo.state.risk.conservative is not None
        assert tamiyo.state.steps + tamiyo.state.failures == len(outcomes)


def test_a_step_inside_a_step_is_refused_instead_of_waiting_for_itself(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        entrance = tamiyo._entrance
        with entrance.call(), pytest.raises(TamiyoError, match="signal handler"):
            tamiyo.step(make_packet())
        assert tamiyo.step(make_packet()).action
