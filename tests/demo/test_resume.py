"""A run that is killed and resumed decides as if nothing had happened; with real processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.storage import StepRecord, decode_step

STEPS = 825  # 25 epochs
EPOCH = 33


def environment(cache: Path) -> dict[str, str]:
    """One compilation cache for all processes, so that the test need not compile thrice."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(directory: Path, cache: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", "tamiyo_jax", "demo", "--json", f"--directory={directory}")
    return subprocess.Popen(
        (*command, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(cache),
    )


def demo(directory: Path, cache: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return start(directory, cache, "--deterministic", f"--steps={STEPS}", *arguments)


def checkpoints(directory: Path) -> list[Path]:
    return sorted((directory / "checkpoints").glob("epoch-" + 6 * "[0-9]"))


def wait_for_checkpoint(directory: Path, process: subprocess.Popen[bytes]) -> None:
    while not checkpoints(directory):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.01)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


def read_newest_steps(directory: Path) -> dict[str, StepRecord]:
    """The newest decision upon each packet: a resumed run decides upon some again."""
    steps = (
        decode_step(record.payload)
        for record in read_journal(directory / "tamiyo").records
        if record.type is RecordType.STEP
    )
    return {step.packet.packet_id: step for step in steps if step.packet is not None}


def assert_bit_identical(whole: StepRecord, resumed: StepRecord) -> None:
    assert whole.packet == resumed.packet
    assert whole.action == resumed.action
    assert whole.state == resumed.state  # normaliser or counters, risk state
    assert whole.report.notes == resumed.report.notes
    for left, right in ((whole.outputs, resumed.outputs), (whole.mask, resumed.mask)):
        assert left is not None
        assert right is not None
        assert left.keys() == right.keys()
        for name in left:
            assert np.array_equal(left[name], right[name]), name
    if whole.command is not None:
        assert resumed.command is not None
        assert whole.command.payload == resumed.command.payload
        assert whole.command.target_seed_id == resumed.command.target_seed_id


@pytest.mark.slow
# The graph policy goes on bit for bit in tests/controller/test_step.py and tests/service.
@pytest.mark.parametrize("policy", ["heuristic"])
def test_a_killed_run_resumes_bit_identically(tmp_path: Path, policy: str) -> None:
    cache = tmp_path / "cache"
    chosen = f"--policy={policy}"
    whole = finish(demo(tmp_path / "whole", cache, chosen))
    broken = tmp_path / "broken"
    process = demo(broken, cache, chosen)
    wait_for_checkpoint(broken, process)
    time.sleep(random.Random(policy).uniform(0.05, 0.6))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    at_kill = read_newest_steps(broken)
    resumed = finish(demo(broken, cache, chosen, "--resume"))
    expected, found = read_newest_steps(tmp_path / "whole"), read_newest_steps(broken)
    assert expected.keys() == found.keys()
    assert len(at_kill) < len(expected), "the run ended before it was killed"
    for packet_id, step in expected.items():
        assert_bit_identical(step, found[packet_id])
    assert resumed["resumed_at"] is not None
    assert resumed["grown"]["test_accuracy"] == whole["grown"]["test_accuracy"]
    records = read_journal(broken / "tamiyo").records
    assert RecordType.RESTORE in {record.type for record in records}


@pytest.mark.slow
def test_a_killed_run_is_resumed_with_its_own_settings_only(tmp_path: Path) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    begun = {"seed": 1, "policy": "heuristic", "deterministic": True}
    process = start(run, cache, "--seed=1", "--deterministic", f"--steps={1000 * EPOCH}")
    wait_for_checkpoint(run, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert json.loads((run / "demo.json").read_text()).items() >= begun.items()

    other = start(run, cache, "--resume", "--seed=0", f"--steps={1000 * EPOCH}")
    refused = other.communicate()[1].decode()
    assert other.returncode == 1
    assert refused.startswith("ConfigurationError: seed is 0")
    assert "seed 1" in refused

    trained = int(checkpoints(run)[-1].name.removeprefix("epoch-"))
    short = start(run, cache, "--resume", f"--steps={(trained - 1) * EPOCH}")
    refused = short.communicate()[1].decode()
    assert short.returncode == 1
    assert f"--steps {trained * EPOCH} or more" in refused

    steps = (trained + 1) * EPOCH
    resumed = finish(start(run, cache, "--resume", f"--steps={steps}"))
    assert resumed["resumed_at"] == trained
    kept = json.loads((run / "demo.json").read_text())
    assert kept.items() >= {**begun, "steps": steps}.items()
    packets = [step.packet for step in read_newest_steps(run).values() if step.packet is not None]
    assert {packet.training_run_id for packet in packets} == {"digits-1"}
    assert not any("samples_per_s" in packet.training_metrics for packet in packets)
