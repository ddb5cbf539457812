"""Real signals in a real process: handlers may close, flush and set conservative mode."""

from __future__ import annotations

import dis
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from making import make_packet, open_tamiyo

from tamiyo_jax.contracts import ReportOutcome
from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.replay import read_history
from tamiyo_jax.service import Tamiyo
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


@pytest.mark.slow
def test_a_handler_that_exits_at_any_moment_of_a_step_ends_the_process_with_its_status(
    tmp_path: Path,
) -> None:
    for moment in count(1, 13):
        directory = tmp_path / str(moment)
        tamiyo = open_tamiyo(directory, mode="guard")
        tamiyo.step(make_packet(0))

        def preempt(tamiyo: Tamiyo = tamiyo) -> None:
            tamiyo.set_conservative(True, "preempted")
            tamiyo.flush()
            tamiyo.close()
            sys.exit(3)

        ended: SystemExit | None = None
        interruption = Interruption(moment, preempt)
        sys.settrace(interruption)
        try:
            tamiyo.step(make_packet(1))
        except SystemExit as error:
            ended = error
        finally:
            sys.settrace(None)
        if not interruption.place:  # the step has fewer moments
            tamiyo.close()
            break
        assert ended is not None, interruption.place
        assert ended.code == 3, interruption.place
        history = read_history(directory)
        steps = [record for record in history if isinstance(record, StepRecord)]
        failed = getattr(ended, "__notes__", [])
        if not isinstance(history[-1], OperatorRecord):  # it came while the record was written
            assert len(failed) == 3, interruption.place
            assert all("sealed" in note or "outcome unknown" in note for note in failed), failed
        with open_tamiyo(directory, mode="guard") as reopened:
            assert (reopened.state.risk.conservative is None) == bool(failed), interruption.place
            assert reopened.state.steps + reopened.state.failures == len(steps)
    assert moment > 1000


class Interruption:
    """Calls a signal handler at one of the moments of a call at which Python would.

    That is where a function begins, after a call and where a loop goes back. The exception of a
    handler belongs to the instruction before, so moments at which that one is handled elsewhere
    are passed over. Given to `sys.settrace`.
    """

    def __init__(self, moment: int, handler: Callable[[], None]) -> None:
        self.place = ""
        self._left = moment
        self._handler = handler
        self._before: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        path = frame.f_code.co_filename
        if "tamiyo_jax" not in path and not path.endswith("contextlib.py"):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "return":
            self._before.pop(frame, None)
        elif event == "opcode":
            before = self._before.get(frame)
            self._before[frame] = frame.f_lasti
            if before is not None and is_moment(frame.f_code, before, frame.f_lasti):
                self._left -= 1
            if self._left == 0:
                sys.settrace(None)
                self._before.clear()
                self.place = f"{path}:{frame.f_lineno}"
                self._handler()
        return self


@cache
def is_moment(code: CodeType, before: int, now: int) -> bool:
    opcode = dis.opname[code.co_code[before]]
    return opcode in {"RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD"} and (
        find_target(code, before) == find_target(code, now)
    )


def find_target(code: CodeType, offset: int) -> int | None:
    return next(
        (entry.target for entry in read_table(code) if entry.start <= offset < entry.end), None
    )


@cache
def read_table(code: CodeType) -> list[Any]:
    return dis.Bytecode(code).exception_entries


def test_a_step_inside_a_step_is_refused_instead_of_waiting_for_itself(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        with pytest.raises(TamiyoError, match="signal handler"):
            tamiyo._entrance.call(lambda: tamiyo.step(make_packet()))
        assert tamiyo.step(make_packet()).action
