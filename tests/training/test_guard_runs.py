"""Real runs with Tamiyo on guard: each trouble is caught, and what can recover does."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import guard_runs
import jax
import numpy as np
import pytest
from guard_runs import FULL_DISK, HIGH_RATE, NAN, NOTHING, SLOW_INPUT, SPIKE, Run, Trouble

STEPS, AT = 400, 150
PAGE = Path(__file__).parents[2] / "docs" / "choosing_thresholds.md"
# Optax's Adam and Flax's initialisers mix dtypes.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]


def train(trouble: Trouble, directory: Path | None) -> Run:
    return guard_runs.train(trouble, directory, steps=STEPS, at=AT)


def count_reasons(run: Run) -> Counter[tuple[str, str]]:
    """How often each action was taken for each reason; a machine that is busy is no trouble."""
    counted = Counter((answer.action, answer.reason) for answer in run.answers)
    return counted - Counter({("WAIT", "step_latency_high"): STEPS})


def test_a_healthy_run_is_left_alone(tmp_path: Path) -> None:
    alone, guarded = train(NOTHING, None), train(NOTHING, tmp_path)
    assert set(count_reasons(guarded)) == {("WAIT", "guard:wait")}
    jax.tree.map(np.testing.assert_array_equal, guarded.params, alone.params)
    assert alone.accuracy > 0.9


def test_a_spike_is_braked_in_the_step_in_which_it_comes(tmp_path: Path) -> None:
    alone, guarded = train(SPIKE, None), train(SPIKE, tmp_path)
    assert guarded.answers[AT] == (AT, "OPTIMIZER", "grad_variance_high")
    assert guarded.scale < 1
    assert max(guarded.losses.values()) <= max(alone.losses.values())
    assert guarded.accuracy > 0.9


def test_after_a_nan_the_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    alone, guarded = train(NAN, None), train(NAN, tmp_path)
    assert np.isnan(alone.losses[STEPS - 10])
    assert guarded.answers[AT] == (AT, "ROLLBACK", "nonfinite_loss")
    assert count_reasons(guarded)["ROLLBACK", "nonfinite_loss"] == 1
    assert guarded.accuracy > 0.9


def test_a_learning_rate_that_is_too_high_is_lowered_at_once(tmp_path: Path) -> None:
    guarded = train(HIGH_RATE, tmp_path)
    assert guarded.answers[AT] == (AT, "OPTIMIZER", "loss_spike")
    assert guarded.scale < 1
    assert guarded.accuracy > 0.9


def test_late_input_is_reported_until_it_is_in_time_again(tmp_path: Path) -> None:
    guarded = train(SLOW_INPUT, tmp_path)
    late = guarded.answers[AT : AT + 10]
    assert {(answer.action, answer.reason) for answer in late} == {("WAIT", "step_latency_high")}
    assert guarded.answers[-1].action == "WAIT"


def test_on_a_full_disk_training_goes_on_without_tamiyo(tmp_path: Path) -> None:
    alone = train(FULL_DISK, None)
    with guard_runs.small_disk(tmp_path, pytest.skip):
        guarded = train(FULL_DISK, tmp_path)
    failed = [answer for answer in guarded.answers if answer.action == "PersistenceError"]
    assert len(failed) == 1
    assert "disk is full" in failed[0].reason
    first = failed[0].step  # some bytes of the page that was being written may have been left
    assert AT <= first < AT + 20
    assert {answer.action for answer in guarded.answers[first + 1 :]} == {"JournalSealedError"}
    jax.tree.map(np.testing.assert_array_equal, guarded.params, alone.params)


def test_the_page_on_thresholds_reads_them_from_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(NOTHING, tmp_path)
    (tmp_path / "disk" / "tamiyo").rename(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "loss_delta", "grad_var", "grad_conflict_rate", "step_latency_ms",
    ]  # fmt: skip
    assert float(lines[2].split()[-1]) == 1.0  # the one threshold that guard_runs sets
