"""What a notebook shows of a decision and of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from making import open_tamiyo
from report.runs import decide_run, packets

from tamiyo_jax.report import read_run


def test_a_decision_shows_what_was_done_and_why(tmp_path: Path) -> None:
    with open_tamiyo(tmp_path) as tamiyo:
        shown = tamiyo.step(packets(1, broken=[1])[0])._repr_html_()
    assert "<b>ROLLBACK</b>" in shown
    assert "<th>reason</th><td>nonfinite_loss</td>" in shown
    assert "CRITICAL nonfinite_loss" in shown


def test_a_run_shows_what_needs_attention_and_what_happened(tmp_path: Path) -> None:
    shown = read_run(decide_run(tmp_path, packets(3, broken=[3])))._repr_html_()
    assert "The training loss was NaN or infinite at step 30." in shown
    assert "3 decisions from" in shown


def test_ids_are_escaped(tmp_path: Path) -> None:
    packet = packets(1, broken=[1])[0]
    evil = replace(packet, restorable_checkpoint="<script>alert(1)</script>")
    shown = read_run(decide_run(tmp_path, [evil]))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;alert(1)" in shown
