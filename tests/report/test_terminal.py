"""A run on one screen, and several as a table."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from report.runs import decide_run, packets, record, write_run
from rich.console import Console, RenderableType

from tamiyo_jax.report import (
    RunReader,
    find_runs,
    follow,
    read_run,
    render_status,
    summarise_status,
    tabulate_runs,
)

WRITER = Path(__file__).with_name("writing_process.py")


def text(view: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_screen_says_what_goes_on_what_needs_attention_and_why_tamiyo_acted(tmp_path: Path):
    run = read_run(decide_run(tmp_path, packets(30, broken=[20])))
    screen = text(render_status(run, 3))
    assert "ended" in screen
    assert "WARNING  The training loss was NaN or infinite at step 200" in screen
    assert "What to do: Look at the batches of steps 191 to 200" in screen
    assert "PAUSE" in screen
    assert "conservative_mode" in screen
    assert screen.count("│") == 3 * 6


def test_the_same_for_a_program_is_plain_json(tmp_path: Path):
    run = read_run(decide_run(tmp_path, packets(12, broken=[12])))
    facts = summarise_status(run, 1)
    assert (facts["step"], facts["decisions"]) == (120, 12)
    assert facts["attention"][0]["urgency"].name == "CRITICAL"
    (last,) = facts["last_decisions"]
    assert last["command"] == "ROLLBACK to step-10"
    assert json.dumps(last)


def test_control_characters_of_a_message_do_not_reach_the_terminal(tmp_path: Path):
    (packet,) = packets(1)
    note = "PolicyFailureError: \x1b[2J\x07gone"
    run = read_run(write_run(tmp_path, [record(1, packet, action="", reason=note)]))
    screen = text(render_status(run, 1))
    assert "\x1b" not in screen
    assert "\x07" not in screen
    assert "�[2J�gone" in screen


def test_ids_that_look_like_markup_are_shown_as_they_are(tmp_path: Path):
    (packet,) = packets(1)
    packet = replace(packet, seeds=(replace(packet.seeds[0], seed_id="[bold]s[/bold]"),))
    run = read_run(decide_run(tmp_path / "[red]", [packet]))
    assert "[red]" in text(render_status(run, 1)).replace("\n", "")


def test_runs_below_a_directory_are_found_however_deep_and_named_once(tmp_path: Path):
    plain = decide_run(tmp_path / "plain", packets(1))
    inner = decide_run(tmp_path / "demo" / "tamiyo", packets(2))
    deep = decide_run(tmp_path / "runs" / "monday", packets(3))
    (tmp_path / "other" / "journal").mkdir(parents=True)
    assert find_runs(tmp_path) == sorted([plain, inner.parent, deep])
    assert find_runs(plain) == [plain]


def test_the_table_of_runs_names_state_steps_loss_actions_and_trouble(tmp_path: Path):
    decide_run(tmp_path / "fine", packets(3))
    decide_run(tmp_path / "broken", packets(5, broken=[5]))
    table, facts = tabulate_runs([read_run(run) for run in find_runs(tmp_path)], tmp_path)
    shown = text(table)
    assert [fact["decisions"] for fact in facts] == [5, 3]
    assert facts[0]["actions"] == {"ROLLBACK": 1}
    assert "NaN" in shown
    assert "broken" in shown
    assert "0.9167" in shown  # the last validation loss of the other


def test_a_live_run_is_watched_while_it_is_written_and_until_it_ends(tmp_path: Path):
    command = [sys.executable, str(WRITER), str(tmp_path), "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        lengths, holders = [], set()
        for run in follow(RunReader(tmp_path), 0.05):
            lengths.append(len(run))
            holders.add(run.holder)
    assert process.returncode == 0
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 2
    assert holders == {process.pid, None}
    last = read_run(tmp_path)
    assert len(last) == 200
    assert last.corrupt == last.torn == ()


def test_a_run_that_no_process_holds_is_shown_once(tmp_path: Path):
    reader = RunReader(decide_run(tmp_path, packets(2)))
    slept: list[float] = []
    assert [len(run) for run in follow(reader, 9.0, sleep=slept.append)] == [2]
    assert slept == []
