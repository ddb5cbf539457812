"""`tamiyo-jax report`, `status`, `watch`, `runs`, and what `journal dump` can pick."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import dump_journal, invoke
from report.runs import decide_run, packets, record, write_run

STEPS = 30


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Its loss is not finite at step 200, and fine again after that."""
    return decide_run(tmp_path / "runs" / "first", packets(STEPS, broken=[20]))


def test_a_report_goes_into_its_run_and_its_path_is_printed(run: Path) -> None:
    result = invoke("report", str(run))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.strip() == str(run / "report.html")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "The training loss was NaN or infinite at step 200." in page
    assert "http" not in page.replace("http-equiv", "").replace("https://github.com/leeoniya", "")


def test_a_report_of_several_runs_goes_where_it_should(run: Path, tmp_path: Path) -> None:
    other = decide_run(tmp_path / "runs" / "second", packets(3))
    file = tmp_path / "both.html"
    result = invoke("report", str(run), str(other), "--output", str(file), "--json")
    status = json.loads(result.stdout)
    assert status == {"report": str(file), "bytes": file.stat().st_size}
    assert "2 runs compared" in file.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_one_line(run: Path) -> None:
    result = invoke("report", str(run), "--output", "/nowhere/report.html")
    assert result.exit_code == 1
    assert result.stderr.startswith("PersistenceError: /nowhere/report.html cannot be written")
    assert len(result.stderr.splitlines()) == 1


def test_the_status_of_a_run_that_recovered_is_fine(run: Path) -> None:
    result = invoke("status", str(run), "--last", "2")
    assert result.exit_code == 0
    assert "Last decisions" in result.stdout
    status = json.loads(invoke("status", str(run), "--json").stdout)
    assert status["attention"][0]["urgency"] == "WARNING"


def test_the_status_of_a_run_in_trouble_says_no(tmp_path: Path) -> None:
    run = decide_run(tmp_path, packets(5, broken=[5]))
    result = invoke("status", str(run))
    assert result.exit_code == 1
    assert result.stdout.index("CRITICAL") < result.stdout.index("5 decisions")
    status = json.loads(invoke("status", str(run), "--json").stdout)
    assert status["training_loss"] == "NaN"


def test_a_run_that_has_ended_is_watched_once(run: Path) -> None:
    result = invoke("watch", str(run), "--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["decisions"] == STEPS
    assert "conservative_mode" in invoke("watch", str(run)).stdout


def test_the_runs_below_a_directory_are_a_table(run: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "empty", [])
    result = invoke("runs", str(tmp_path))
    assert result.exit_code == 0
    assert "runs/firs" in result.stdout
    status = json.loads(invoke("runs", str(tmp_path), "--json").stdout)
    assert [(answer["state"], answer["decisions"]) for answer in status] == [
        ("empty", 0),
        ("ended", STEPS),
    ]


def test_a_directory_without_runs_is_a_no(tmp_path: Path) -> None:
    result = invoke("runs", str(tmp_path))
    assert (result.exit_code, result.stdout) == (1, f"no run below {tmp_path}\n")
    assert invoke("runs", str(tmp_path), "--json").stdout == "[]\n"


@pytest.mark.parametrize("command", ["report", "status", "watch"])
def test_what_is_no_run_is_misuse(command: str, tmp_path: Path) -> None:
    result = invoke(command, str(tmp_path))
    assert result.exit_code == 2
    assert "holds no journal" in " ".join(result.stderr.replace("│", " ").split())
    assert invoke(command, str(tmp_path / "nowhere")).exit_code == 2


def test_a_dump_can_be_of_the_steps_that_did_something(run: Path) -> None:
    actions = {row["action"] for row in dump_journal(run, "--acted")}
    assert "ROLLBACK" in actions
    assert "WAIT" not in actions


def test_a_dump_can_be_of_the_steps_with_a_reason(run: Path) -> None:
    (one,) = dump_journal(run, "--reason", "nonfinite")
    assert one["action"] == "ROLLBACK"
    newest = dump_journal(run, "--reason", "conservative_mode", "--last", "1")
    assert newest == dump_journal(run, "--reason", "conservative_mode")[-1:]


def test_a_dump_can_begin_at_a_time(tmp_path: Path) -> None:
    steps = [record(number, packet) for number, packet in enumerate(packets(5), start=1)]
    run = write_run(tmp_path, steps)  # a step a second from 22:13:21 on
    assert len(dump_journal(run, "--since", "2023-11-14T22:13:23")) == 3
    assert dump_journal(run, "--since", "2023-11-15") == []
    assert invoke("journal", "dump", str(run), "--since", "yesterday").exit_code == 2
