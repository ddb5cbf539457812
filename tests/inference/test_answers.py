"""A custom policy may answer anything: what is ill-formed is a failure of the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from making import make_packet, open_tamiyo

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import ReportOutcome
from tamiyo_jax.errors import PolicyFailureError
from tamiyo_jax.policy import HeuristicPolicy
from tamiyo_jax.replay import read_history
from tamiyo_jax.storage import StepRecord


class Wrong(HeuristicPolicy):
    """Answers as the heuristic, but for some outputs."""

    outputs: ClassVar[Any] = {}
    next_state: ClassVar[Any] = None

    def __init__(self, config: TamiyoConfig) -> None:
        super().__init__(config.heuristic, config.policy)

    def decide(self, params: Any, policy_state: Any, observation: Any) -> Any:
        state, outputs = super().decide(params, policy_state, observation)
        if Wrong.next_state is not None:
            state = Wrong.next_state
        if callable(Wrong.outputs):
            return state, Wrong.outputs(outputs)
        return state, outputs._replace(**Wrong.outputs)


FLOAT = np.float32
ILL_FORMED = {
    "a scalar of shape (1,)": {"value": np.zeros(1, FLOAT)},
    "too few logits": {"policy_logits": np.zeros(31, FLOAT)},
    "a batch axis": {"risk_logits": np.zeros((1, 5), FLOAT)},
    "no blending methods": {"blending_logits": np.zeros(0, FLOAT)},
    "integers": {"breaker_logits": np.zeros(2, np.int32)},
    "text": {"value": "much"},
    "None": {"param_delta": None},
    "a list": {"schedule_params": [-1.0, 1.0]},
    "objects": {"risk_logits": np.array([object()] * 5)},
    "beyond the range": {"param_delta": FLOAT(7.0)},
    "scores of no seeds": {"seed_scores": np.zeros(0, FLOAT)},
    "scores of too many": {"blueprint_scores": np.zeros(99, FLOAT)},
    "not finite": {"value": FLOAT("nan")},
    "a tuple": tuple,
    "a dict": lambda outputs: outputs._asdict(),
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_answer_is_a_counted_and_recorded_failure_of_the_policy(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tamiyo(tmp_path, policy=f"{__name__}:Wrong") as tamiyo:
        tamiyo.step(make_packet(0))
        monkeypatch.setattr(Wrong, "outputs", ILL_FORMED[case])
        before = tamiyo.state
        with pytest.raises(PolicyFailureError):
            tamiyo.step(make_packet(1))
        assert tamiyo.state.risk.inference.failures == 1
        assert tamiyo.state.policy_state == before.policy_state
        monkeypatch.undo()
        tamiyo.step(make_packet(2))
    steps = [step for step in read_history(tmp_path) if isinstance(step, StepRecord)]
    assert [step.report.outcome is ReportOutcome.ABORTED for step in steps] == [False, True, False]


def test_a_next_policy_state_of_another_kind_is_a_failure_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "next_state", object())
    with (
        open_tamiyo(tmp_path, policy=f"{__name__}:Wrong") as tamiyo,
        pytest.raises(PolicyFailureError, match="next policy state"),
    ):
        tamiyo.step(make_packet())
