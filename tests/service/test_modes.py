"""Trusting a controller by steps: shadow, guard and act, switched while a run goes on."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from inference.test_policy_update import FIRST, SECOND, graph_tamiyo, make_update, value, values_of
from making import SECRET, make_config, make_packet, open_tamiyo, story
from summaries import summarise_decision

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Secret, TelemetryLevel, signature_of
from tamiyo_jax.decision import Decision
from tamiyo_jax.errors import (
    ConfigurationError,
    MissingParametersError,
    PersistenceError,
    WorkerUnavailableError,
)
from tamiyo_jax.journal import read_journal
from tamiyo_jax.policy import HeuristicPolicy
from tamiyo_jax.storage import OperatorRecord, StepRecord, read_entries
from tamiyo_jax.telemetry import MemorySink


def on_record(directory: Path, kind: type) -> list[Any]:
    contents = [entry.content for entry in read_entries(read_journal(directory))]
    return [content for content in contents if isinstance(content, kind)]


def summarise(decision: Decision) -> tuple[Any, ...]:
    """What was decided: everything but ids, times, and whether it counts."""
    return summarise_decision(decision, "value")


def workers() -> int:
    """Worker processes that this one has started and not reaped."""
    children = psutil.Process().children()
    return sum(
        any(word.endswith("workers/_start.py") for word in child.cmdline()) for child in children
    )


def test_shadow_becomes_act_between_two_steps_and_decides_on_as_before(tmp_path: Path) -> None:
    packets = [packet for packet in story(16) if (packet.validation_loss or 0) < 1.2]
    with open_tamiyo(tmp_path / "whole") as tamiyo:
        expected = [summarise(tamiyo.step(packet)) for packet in packets]
    with open_tamiyo(tmp_path / "switched", mode="shadow") as tamiyo:
        shadowed = [tamiyo.step(packet) for packet in packets[:8]]
        tamiyo.set_mode("act")
        acted = [tamiyo.step(packet) for packet in packets[8:]]
    assert [summarise(decision) for decision in (*shadowed, *acted)] == expected
    assert all(decision.shadow for decision in shadowed)
    assert not any(decision.shadow for decision in acted)
    commands = [decision.command for decision in acted if decision.command is not None]
    assert commands
    for command in commands:
        assert command.annotations["signature"] == signature_of(command, Secret(SECRET))
    steps = on_record(tmp_path / "switched", StepRecord)
    assert [step.mode for step in steps] == 8 * ["shadow"] + 8 * ["act"]


def test_a_switch_is_an_event_and_on_record_and_the_same_mode_again_is_neither(
    tmp_path: Path,
) -> None:
    sink = MemorySink()
    with open_tamiyo(tmp_path, mode="shadow", sinks=(sink,)) as tamiyo:
        tamiyo.step(make_packet())
        tamiyo.set_mode("guard")
        tamiyo.set_mode("guard")
        assert tamiyo.mode == "guard"
        tamiyo.set_mode("act")
    (first, second) = [event for event in sink.events if event.name == "mode_changed"]
    assert first.level is TelemetryLevel.INFO
    assert first.attributes == {"from": "shadow", "to": "guard"}
    assert second.attributes == {"from": "guard", "to": "act"}
    changes = on_record(tmp_path, OperatorRecord)
    assert [(change.action, change.detail) for change in changes] == [
        ("mode_changed", "shadow → guard"),
        ("mode_changed", "guard → act"),
    ]
    with open_tamiyo(tmp_path, mode="shadow") as tamiyo:
        assert tamiyo.mode == "shadow"  # opening says the mode, not the last run


def test_guard_asks_no_policy_and_act_does(tmp_path: Path) -> None:
    germinal = make_packet(seeds=story(8)[4].seeds)
    with open_tamiyo(tmp_path, mode="guard") as tamiyo:
        assert tamiyo.step(germinal).value is None
        tamiyo.set_mode("act")
        advanced = tamiyo.step(germinal)
        tamiyo.set_mode("guard")
        assert tamiyo.step(germinal).value is None
    assert advanced.action == "ADVANCE"
    assert advanced.command is not None
    assert advanced.command.annotations["policy_version"] == "heuristic-1"
    versions = [record.report.tamiyo_policy_version for record in on_record(tmp_path, StepRecord)]
    assert versions == ["guard", "heuristic-1", "guard"]


def test_what_a_policy_has_learned_of_a_run_survives_its_rest_on_guard(tmp_path: Path) -> None:
    packets = story(9)
    with open_tamiyo(tmp_path) as tamiyo:
        for packet in packets[:6]:
            tamiyo.step(packet)
        learned = tamiyo.state.policy_state
        tamiyo.set_mode("guard")
        for packet in packets[6:]:
            tamiyo.step(packet)
        tamiyo.set_mode("act")
        assert tamiyo.state.policy_state == learned


def test_workers_are_there_only_while_a_policy_decides_and_steps_go_on_meanwhile(
    tmp_path: Path,
) -> None:
    with open_tamiyo(tmp_path, mode="guard", isolation="process") as tamiyo:
        tamiyo.step(make_packet())
        assert workers() == 0
        switching = threading.Thread(target=tamiyo.set_mode, args=("act",))
        switching.start()
        guarded = 0
        while switching.is_alive():
            guarded += tamiyo.step(make_packet()).value is None
        switching.join()
        assert guarded > 10
        assert workers() > 0
        decision = tamiyo.step(make_packet())
        assert decision.value is not None
        assert "layout_prepared" not in {event.name for event in decision.events}
        tamiyo.set_mode("guard")
        assert workers() == 0


def test_a_graph_policy_without_parameters_may_guard_and_not_act(tmp_path: Path) -> None:
    """The shipped parameters are for three blending methods, not for four."""
    four = {"blending_methods": ("linear", "cosine", "warmup_hold", "step")}
    config = make_config(policy=four)
    with open_tamiyo(tmp_path, mode="guard", policy="graph", config=config) as tamiyo:
        tamiyo.step(make_packet())
        for mode in ("act", "shadow"):
            with pytest.raises(MissingParametersError, match="init_params"):
                tamiyo.set_mode(mode)
        assert tamiyo.mode == "guard"
        assert tamiyo.step(make_packet(1)).value is None
    assert on_record(tmp_path, OperatorRecord) == []
    with graph_tamiyo(tmp_path) as tamiyo:  # the state of its guard is one that it can go on from
        assert tamiyo.state.steps == 2
        assert tamiyo.step(make_packet(2)).value is not None


def test_a_policy_update_is_in_force_after_guard_and_may_come_during_it(tmp_path: Path) -> None:
    expected = values_of(tmp_path / "second", SECOND, 1)
    with graph_tamiyo(tmp_path / "run", mode="guard") as tamiyo:
        tamiyo.update_policy(make_update())
        assert tamiyo.step(story(1)[0]).value is None
        tamiyo.set_mode("shadow")
        assert [value(tamiyo)] == expected
    with graph_tamiyo(tmp_path / "run", mode="guard") as tamiyo:
        assert "learned-p1" not in repr(tamiyo)
        tamiyo.set_mode("act")
        assert "learned-p1" in repr(tamiyo)
        tamiyo.rollback_policy()
        assert "learned-p1" not in repr(tamiyo)


def test_restored_parameters_decide_after_guard(tmp_path: Path) -> None:
    expected = values_of(tmp_path / "second", SECOND, 1)
    with graph_tamiyo(tmp_path / "run", mode="guard", params=FIRST) as tamiyo:
        tamiyo.restore(tamiyo.state, SECOND)
        tamiyo.set_mode("act")
        assert [value(tamiyo)] == expected


class AtHomeOnly(HeuristicPolicy):
    """A policy that no worker can make."""

    def __init__(self, config: TamiyoConfig) -> None:
        if "PYTEST_CURRENT_TEST" not in os.environ:
            raise RuntimeError("not at home")
        super().__init__(config.heuristic, config.policy)


def test_a_policy_that_cannot_be_started_leaves_the_guard_standing(tmp_path: Path) -> None:
    policy = f"{__name__}:AtHomeOnly"
    with open_tamiyo(tmp_path, mode="guard", isolation="process", policy=policy) as tamiyo:
        with pytest.raises(WorkerUnavailableError, match="not at home"):
            tamiyo.set_mode("act")
        assert tamiyo.mode == "guard"
        assert workers() == 0
        assert tamiyo.step(make_packet()).action == "WAIT"
    assert on_record(tmp_path, OperatorRecord) == []


def test_what_does_not_exist_or_is_closed_is_refused(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo, pytest.raises(ConfigurationError, match="'shadow'"):
        tamiyo.set_mode("bold")
    with pytest.raises(PersistenceError, match="closed"):
        tamiyo.set_mode("guard")


class SlowToClose:
    """A runner whose end takes its time."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self.closing, self.released = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def close(self) -> None:
        self.closing.set()
        assert self.released.wait(120)
        self._runner.close()


def test_steps_go_on_while_a_policy_that_was_replaced_is_being_closed(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        deployed = tamiyo._steps.deployed
        slow = SlowToClose(deployed.runner)
        tamiyo._steps.deployed = replace(deployed, runner=slow)
        switching = threading.Thread(target=tamiyo.set_mode, args=("guard",))
        switching.start()
        assert slow.closing.wait(60)
        stepped = threading.Thread(target=tamiyo.step, args=(make_packet(),))
        stepped.start()
        stepped.join(60)
        held_up = stepped.is_alive()
        slow.released.set()
        switching.join()
        stepped.join()
        assert not held_up
