"""Doing again what a journal says was done: exactly, or with a word about what differs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from making import (
    SECRET,
    Clock,
    make_config,
    make_library,
    make_packet,
    make_seed,
    open_tamiyo,
    story,
)
from summaries import summarise_decision

from tamiyo_jax import host
from tamiyo_jax.config import SecurityConfig
from tamiyo_jax.contracts import (
    CommandType,
    NonceLedger,
    Secret,
    SeedStage,
    Verifier,
)
from tamiyo_jax.demo import digits_task
from tamiyo_jax.errors import (
    MissingSecretError,
    PersistenceError,
    ReplayDivergedError,
    TamiyoError,
    UnknownBlueprintError,
)
from tamiyo_jax.library import MemoryBlueprintLibrary
from tamiyo_jax.replay import Replay, read_history
from tamiyo_jax.replay._replay import REPLAY_OF
from tamiyo_jax.storage import StepRecord
from tamiyo_jax.training import _loop as loop

OTHER = b"the secret of another run"
CHECKS = SecurityConfig()


def record_run(directory: Path, packets: list, **arguments: Any) -> list[Any]:
    with open_tamiyo(directory, **arguments) as tamiyo:
        return [tamiyo.step(packet) for packet in packets]


def replay_of(directory: Path) -> Replay:
    return Replay.open(directory, secret=OTHER, clock=Clock())


def test_decisions_come_again_as_they_were_and_signed_for_the_new_run(tmp_path: Path) -> None:
    packets = story(30)
    decisions = record_run(tmp_path, packets)
    replay, verifier = replay_of(tmp_path), Verifier((Secret(OTHER),), NonceLedger(0), CHECKS)
    again = [replay.step(packet) for packet in packets]
    assert [summarise_decision(decision) for decision in again] == [
        summarise_decision(decision) for decision in decisions
    ]
    assert {decision.differences for decision in again} == {()}
    commands = [(a.command, b.command) for a, b in zip(again, decisions, strict=True) if a.command]
    assert commands
    for renewed, original in commands:
        verifier = verifier.verify(renewed, now_ns=Clock()())
        assert renewed.annotations[REPLAY_OF] == original.command_id != renewed.command_id
    assert replay.remaining == 0
    with pytest.raises(ReplayDivergedError, match="ends after 30 steps"):
        replay.step(make_packet(30))


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_a_run_replayed_onto_the_same_seed_is_the_same_run_bit_for_bit(tmp_path: Path) -> None:
    task, library = digits_task(3), MemoryBlueprintLibrary()
    for blueprint in (task.blueprint, *task.candidates):
        library.put(blueprint)

    def train(controller: Any, secret: bytes, name: str) -> loop.RunResult:
        verifier = Verifier((Secret(secret),), NonceLedger(0), CHECKS)
        checkpoints = host.HostCheckpoints(tmp_path / name, task.host)
        applier = host.CommandApplier(
            verifier,
            clock=time.time_ns,
            optimizer_id="adamw",
            checkpointer=checkpoints,
            host=task.host,
        )
        return loop.run(
            task,
            controller,
            steps=40 * task.steps_per_epoch,
            state=loop.init_loop(task, 3),
            run_id=name,
            compile_ahead=False,
            applier=applier,
            checkpoints=checkpoints,
        )

    with open_tamiyo(tmp_path / "run", library=library, clock=time.time_ns) as tamiyo:
        first = train(tamiyo, SECRET, "first")
    replay = Replay.open(tmp_path / "run", secret=OTHER)
    second = train(replay, OTHER, "second")
    decisions = [record.decision for record in first.history]
    assert {summarise_decision(decision)[0] for decision in decisions} >= {
        "GERMINATE",
        "ADVANCE",
        "WAIT",
    }
    again = [record.decision for record in second.history]
    assert [summarise_decision(decision) for decision in again] == [
        summarise_decision(decision) for decision in decisions
    ]
    assert {decision.differences for decision in again} == {()}
    assert second.test_accuracy == first.test_accuracy
    jax.tree.map(np.testing.assert_array_equal, second.state, first.state)


def two_seeds(**changes: SeedStage) -> tuple:
    stages = {"s0": SeedStage.DORMANT, "s1": SeedStage.TRAINING} | changes
    return tuple(make_seed(name, stage) for name, stage in stages.items())


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"current_epoch": 7}, "current_epoch is 7, on record 0"),
        ({"global_step": 5}, "global_step is 5, on record 0"),
        ({"blueprint_id": "grow-a"}, "blueprint_id is grow-a, on record host"),
        ({"seeds": two_seeds(s0=SeedStage.CULLED)}, "seed s0 is CULLED, on record DORMANT"),
        ({"seeds": two_seeds()[:1]}, "seed s1 is absent, on record TRAINING"),
        ({"seeds": two_seeds(s2=SeedStage.DORMANT)}, "seed s2 is DORMANT, on record absent"),
    ],
)
def test_a_run_at_another_place_is_an_error_and_the_next_packet_has_its_own_step(
    tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    packets = [make_packet(step, seeds=two_seeds()) for step in range(2)]
    decisions = record_run(tmp_path, packets)
    replay = replay_of(tmp_path)
    with pytest.raises(ReplayDivergedError) as raised:
        replay.step(replace(packets[0], **fields))
    assert raised.value.differences == (why,)
    assert why in str(raised.value)
    assert summarise_decision(replay.step(packets[1])) == summarise_decision(decisions[1])


@pytest.mark.parametrize(
    ("packets", "arguments", "kind", "change", "why"),
    [
        (
            [make_packet(step, seeds=(make_seed(),)) for step in range(10)],
            {},
            "GERMINATE",
            {"candidate_blueprint_ids": ("host",)},
            "is no candidate",
        ),
        (
            [make_packet(0), make_packet(1, validation_loss=1.0)],
            {"mode": "guard"},
            "OPTIMIZER",
            {"optimizer_id": "sgd"},
            "optimizer_id is sgd, on record adam",
        ),
        (
            [make_packet(validation_loss=np.inf, restorable_checkpoint="good")],
            {"mode": "guard"},
            "ROLLBACK",
            {"restorable_checkpoint": "better"},
            "restorable_checkpoint is better, on record good",
        ),
    ],
    ids=["blueprint", "optimizer", "checkpoint"],
)
def test_a_command_that_names_what_the_packet_does_not_offer_is_never_handed_out(
    tmp_path: Path, packets: list, arguments: dict, kind: str, change: dict, why: str
) -> None:
    actions = [decision.action for decision in record_run(tmp_path, packets, **arguments)]
    assert kind in actions
    replay = replay_of(tmp_path)
    for packet, action in zip(packets, actions, strict=True):
        if action == kind:
            with pytest.raises(ReplayDivergedError, match=why):
                replay.step(replace(packet, **change))
            return
        assert replay.step(replace(packet, **change)).action == action  # names nothing of it


def test_other_numbers_at_the_same_place_are_reported_with_the_decision(tmp_path: Path) -> None:
    packet = make_packet(validation_loss=np.nan)
    decisions = record_run(tmp_path, [packet, make_packet(1), make_packet(2)])
    replay = replay_of(tmp_path)
    own = {**packet.training_metrics, "samples_per_s": 1.0, "hook_latency_ms": 99.0}
    moved = replace(packet, packet_id="x", training_run_id="y", timestamp_ns=5)
    assert replay.step(replace(moved, training_metrics=own)).differences == ()
    seeds = (make_seed("s0", gradient_norm=0.6), make_seed("s1", SeedStage.TRAINING))
    other = make_packet(1, validation_loss=0.8, seeds=seeds)
    answer = replay.step(other)
    assert answer.differences == ("seeds[0].gradient_norm", "validation_loss")
    assert summarise_decision(answer) == summarise_decision(decisions[1])
    less = replace(make_packet(2), training_metrics={"loss": 0.8, "mine": 1.0})
    assert set(replay.step(less).differences) == {
        "training_metrics.gradient_norm",
        "training_metrics.epochs_total",
        "training_metrics.mine",
    }


def test_a_step_that_failed_on_record_fails_again_and_says_why(tmp_path: Path) -> None:
    good, bad = make_packet(0), make_packet(1, candidate_blueprint_ids=("nowhere",))
    with open_tamiyo(tmp_path) as tamiyo:
        tamiyo.step(good)
        with pytest.raises(UnknownBlueprintError):
            tamiyo.step(bad)
        last = tamiyo.step(make_packet(2))
    replay = replay_of(tmp_path)
    replay.step(good)
    with pytest.raises(TamiyoError, match=r"UnknownBlueprintError.*nowhere") as raised:
        replay.step(bad)
    assert not isinstance(raised.value, ReplayDivergedError)
    assert summarise_decision(replay.step(make_packet(2))) == summarise_decision(last)


@pytest.mark.parametrize("cut", [0, 1, 12])
def test_what_a_restored_run_had_done_in_vain_is_not_done_again(tmp_path: Path, cut: int) -> None:
    packets = story(24)
    in_vain = [replace(packet, packet_id="vain", current_epoch=900) for packet in packets[cut:20]]
    with open_tamiyo(tmp_path) as tamiyo:
        saved = tamiyo.state
        decisions = []
        for packet in packets[:cut]:
            decisions.append(tamiyo.step(packet))
            saved = tamiyo.state
        tamiyo.set_mode("guard")
        for packet in in_vain:
            tamiyo.step(packet)
    with open_tamiyo(tmp_path, state=saved) as tamiyo:
        decisions += [tamiyo.step(packet) for packet in packets[cut:]]
    replay = replay_of(tmp_path)
    assert [summarise_decision(replay.step(packet)) for packet in packets] == [
        summarise_decision(decision) for decision in decisions
    ]
    assert replay.remaining == 0


def test_a_state_of_another_run_begins_another_history(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path / "other") as tamiyo:
        for packet in story(9):
            tamiyo.step(packet)
        foreign = tamiyo.state
    record_run(tmp_path / "run", story(5))
    decisions = record_run(tmp_path / "run", story(12)[9:], state=foreign)
    replay = replay_of(tmp_path / "run")
    assert replay.remaining == 3
    assert [summarise_decision(replay.step(packet)) for packet in story(12)[9:]] == [
        summarise_decision(decision) for decision in decisions
    ]


def test_what_was_only_shadow_stays_shadow_and_unsigned(tmp_path: Path) -> None:
    packet = make_packet(validation_loss=np.nan)
    record_run(tmp_path, [packet], mode="shadow")
    answer = replay_of(tmp_path).step(packet)
    assert answer.shadow
    assert answer.command is not None
    assert answer.command.command_type is CommandType.PAUSE
    assert "signature" not in answer.command.annotations


def test_a_journal_without_packets_cannot_be_replayed_and_says_what_to_turn_on(
    tmp_path: Path,
) -> None:
    record_run(tmp_path, story(2), config=make_config(storage={"record_packets": False}))
    with pytest.raises(PersistenceError, match=r"storage\.record_packets"):
        replay_of(tmp_path)


def test_a_lost_step_is_named_and_not_skipped(tmp_path: Path) -> None:
    record_run(tmp_path, story(6))
    (segment,) = (tmp_path / "journal").iterdir()
    data = segment.read_bytes()
    at = data.index(b"packet-3")
    segment.write_bytes(data[:at] + b"P" + data[at + 1 :])
    with pytest.raises(PersistenceError, match="step 5 follows step 3") as raised:
        replay_of(tmp_path)
    assert raised.value.missing == 4


def test_no_journal_and_a_guessable_secret_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match="holds no journal"):
        replay_of(tmp_path)
    with pytest.raises(MissingSecretError):
        Replay.open(tmp_path, secret=b"short")


def test_reading_a_history_leaves_a_live_run_alone(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path, library=make_library()) as tamiyo:
        tamiyo.step(make_packet())
        tamiyo.flush()
        (first,) = read_history(tmp_path)
        tamiyo.step(make_packet(1))
    assert isinstance(first, StepRecord)
    assert replay_of(tmp_path).remaining == 2
