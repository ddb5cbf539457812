"""What a report asks a person to look at: what happened, why, and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making import make_config, open_tamiyo
from report.runs import SECOND_NS, START_NS, decide_run, one_packet, packets, record, write_run

from tamiyo_jax.report import Finding, Run, Urgency, describe_run, list_findings, read_run


def only(found: tuple[Finding, ...], word: str) -> Finding:
    (one,) = (finding for finding in found if word in finding.what)
    return one


def as_found(directory: Path, **fields: Any) -> Run:
    """A run as if it had been read a second after its last decision, on a roomy disk."""
    run = read_run(directory)
    fields = {"free_bytes": 10**12, "read_ns": int(run.frame["time_ns"][-1]) + SECOND_NS, **fields}
    return replace(run, **fields)


def healthy(directory: Path, count: int = 20) -> Path:
    return write_run(
        directory, [record(n, packet) for n, packet in enumerate(packets(count), start=1)]
    )


def test_a_healthy_run_needs_no_attention(tmp_path: Path):
    assert list_findings(as_found(healthy(tmp_path))) == ()


def test_a_loss_that_was_not_finite_is_explained_and_its_batches_are_named(tmp_path: Path):
    found = list_findings(as_found(decide_run(tmp_path, packets(30, broken=[15, 16]))))
    one = only(found, "NaN")
    assert one.urgency is Urgency.WARNING
    assert "at 2 decisions between steps 150 and 160" in one.what
    assert "2 × ROLLBACK to step-10" in one.what
    assert "finite again since step 170" in one.what
    assert "Something in steps 141 to 150 broke it" in one.why
    assert "batches of steps 141 to 150" in one.do


def test_a_loss_that_is_still_not_finite_is_critical_and_says_where_to_go_back_to(tmp_path: Path):
    found = list_findings(as_found(decide_run(tmp_path, packets(12, broken=[11, 12]))))
    one = only(found, "NaN")
    assert one.urgency is Urgency.CRITICAL
    assert one.do.endswith("Stop the run and go back to checkpoint step-10.")


def test_gradients_that_grew_before_the_loss_broke_are_called_a_divergence(tmp_path: Path):
    some = packets(20, broken=[20])
    metrics = {**some[18].training_metrics, "gradient_norm": 900.0}
    some[18] = replace(some[18], training_metrics=metrics)
    one = only(list_findings(as_found(decide_run(tmp_path, some))), "NaN")
    assert "900" in one.why
    assert "diverged" in one.why


@pytest.mark.parametrize(("later", "urgency"), [(0, Urgency.CRITICAL), (3, Urgency.WARNING)])
def test_failed_steps_are_urgent_while_they_last(tmp_path: Path, later: int, urgency: Urgency):
    good = one_packet(1, broken=False, seeds=True)
    bad = replace(good, blueprint_id="unheard-of")
    one = only(
        list_findings(as_found(decide_run(tmp_path, [good, bad, bad] + [good] * later))), "failed"
    )
    assert one.urgency is urgency
    assert "2 steps failed: UnknownBlueprintError 2" in one.what
    assert "unheard-of" in one.why


def test_conservative_mode_that_is_on_is_said_with_its_reason(tmp_path: Path):
    found = list_findings(as_found(decide_run(tmp_path, packets(13, broken=[11]))))
    one = only(found, "Conservative mode is on, for 3 decisions")
    assert "nonfinite_loss" in one.why


def test_a_full_disk_is_critical_while_the_run_goes_on(tmp_path: Path):
    run = as_found(healthy(tmp_path), free_bytes=1000, holder=4711)
    one = list_findings(run)[0]
    assert one.urgency is Urgency.CRITICAL
    assert "full: 1 kB are free" in one.what
    assert f"Free space on the disk of {tmp_path}" in one.do


def test_a_journal_that_stopped_says_why_and_how_to_go_on(tmp_path: Path):
    why = "appending a record failed: the disk is full (ENOSPC)"
    one = list_findings(as_found(healthy(tmp_path), stopped=why))[0]
    assert one.urgency is Urgency.CRITICAL
    assert "takes no more records after step 200" in one.what
    assert one.why == why
    assert "opened on the same directory goes on from its journal" in one.do


def test_corruption_is_critical_and_names_the_command_that_shows_it(tmp_path: Path):
    healthy(tmp_path)
    write_run(tmp_path, [])  # opened once more: what is there by then was promised
    segment = min((tmp_path / "journal").iterdir())
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 0xFF
    segment.write_bytes(content)
    run = as_found(tmp_path)
    one = list_findings(run)[0]
    assert one.urgency is Urgency.CRITICAL
    assert "is missing" in one.why
    assert f"tamiyo-jax journal verify {tmp_path}" in one.do
    assert len(run) == 19  # all that is left is read


def test_a_run_that_is_silent_while_it_is_held_hangs(tmp_path: Path):
    run = as_found(healthy(tmp_path), holder=4711, read_ns=START_NS + 1000 * SECOND_NS)
    one = list_findings(run)[0]
    assert "No decision for 16.3 min, while process 4711 holds the run" in one.what
    assert list_findings(replace(run, holder=None)) == ()


def test_a_long_pause_between_two_decisions_is_noted(tmp_path: Path):
    steps = [
        record(n if n < 10 else n + 3600, packet) for n, packet in enumerate(packets(20), start=1)
    ]
    one = only(list_findings(as_found(write_run(tmp_path, steps))), "No decision between")
    assert one.urgency is Urgency.NOTE
    assert "(1.0 h)" in one.what


def test_a_validation_loss_that_rose_since_its_best_is_said_in_percent(tmp_path: Path):
    losses = (1.0, 0.5, 0.75)
    steps = [
        record(number, replace(packet, validation_loss=loss))
        for number, (packet, loss) in enumerate(zip(packets(3), losses, strict=True), start=1)
    ]
    one = only(list_findings(as_found(write_run(tmp_path, steps))), "above its best")
    assert "50 % above its best, 0.5 at step 20" in one.what


def test_without_a_validation_loss_it_is_said_that_no_rule_can_see_it(tmp_path: Path):
    steps = [
        record(n, replace(packet, validation_loss=None)) for n, packet in enumerate(packets(3), 1)
    ]
    assert (
        "Plug.open"
        in only(list_findings(as_found(write_run(tmp_path, steps))), "validation loss").do
    )


def test_more_pauses_than_the_budget_are_critical(tmp_path: Path):
    config = make_config(risk={"pause_budget": 20})
    hot = [
        replace(packet, training_metrics={**packet.training_metrics, "hook_latency_ms": 80.0})
        for packet in packets(30)
    ]
    one = only(list_findings(as_found(decide_run(tmp_path, hot, config=config))), "paused 30 times")
    assert one.urgency is Urgency.CRITICAL
    assert "beyond its budget of 20" in one.what
    assert "hook_budget 30" in one.why


def test_shadow_mode_says_that_nothing_was_applied(tmp_path: Path):
    run = as_found(decide_run(tmp_path, packets(12, broken=[12]), mode="shadow"))
    assert "logged, not applied" in only(list_findings(run), "shadow").what
    assert any("would have acted" in line for line in describe_run(run))


def test_what_was_done_by_hand_is_part_of_the_story(tmp_path: Path):
    with open_tamiyo(tmp_path) as tamiyo:
        tamiyo.step(packets(1)[0])
        tamiyo.set_conservative(True, reason="the night shift")
    assert any("the night shift" in line for line in describe_run(read_run(tmp_path)))


def test_the_story_names_losses_growth_actions_and_their_reasons(tmp_path: Path):
    text = "\n".join(describe_run(read_run(decide_run(tmp_path, packets(25)))))
    assert "25 decisions from 2023-11-14" in text
    assert "Training loss 1.5 at first, 0.54 at last" in text
    assert "Live parameters went from 300 to 900." in text
    assert "Seed s0: GERMINATED from step 50, TRAINING from step 100, BLENDING" in text
    assert "heuristic:" in text


def test_an_empty_run_says_so(tmp_path: Path):
    run = read_run(write_run(tmp_path, []))
    assert describe_run(run) == ("No decision is on record yet.",)
    assert list_findings(replace(run, free_bytes=10**12)) == ()
