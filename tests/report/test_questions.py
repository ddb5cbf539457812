"""The questions of an engineer on call, answered by the page alone.

A run through the Plug, on a real disk that fills up: a seed grows, a batch breaks the loss,
and then the journal cannot be written.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import invoke
from host.tiny_host import BANK, batch, make_host, make_state
from making import make_blueprint

from tamiyo_jax import Plug, host
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.journal import PosixFileSystem
from tamiyo_jax.report import read_run, render_page
from tamiyo_jax.storage import DirectoryLock, read_lock

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]
BROKEN, FULL, END = 152, 300, 400


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of its own, of two megabytes."""
    place = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tamiyo-report", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a tmpfs may not be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def run(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory, as the training process left it."""
    made = make_host()
    state, (x, y) = make_state(made), batch(0)
    step = jax.jit(partial(host.train_step, made))
    candidates = [make_blueprint(name) for name in BANK]
    lines: list[str] = []
    settings = {"mode": "act", "every": 5, "log": lines.append}
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setenv("TAMIYO__DEADLINES__INFERENCE_MS", "60000")
        patch.setenv("TAMIYO__RISK__DETECTION", "absolute")  # here, the growth goes on to its end
        patch.setenv("TAMIYO__DEADLINES__METADATA_MS", "60000")
        tamiyo = Plug.grow(disk, state, made, candidates, (x, y), **settings)
        for number in range(END):
            if number == FULL:
                (disk / "another-file").write_bytes(b"\0" * shutil.disk_usage(disk).free)
            factor = jnp.float32(np.nan if number == BROKEN else 1)
            state, measured = step(state, (x * factor, y))
            state = tamiyo(state, measured)
        with suppress(PersistenceError):  # it says once more that the journal is sealed
            tamiyo.close()
    assert int(state.step) > FULL  # training went on
    assert any("goes on without Tamiyo" in line for line in lines)
    return tamiyo.directory


def read_page(run: Path) -> str:
    """What the page says above its figures, as text."""
    content = render_page([read_run(run)], made_ns=time.time_ns())
    words = content[content.index("<main>") : content.index('<div class="figure"')]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", words)))


def test_the_page_says_that_the_disk_is_full_since_when_and_how_to_go_on(run: Path) -> None:
    text = read_page(run)
    assert "stopped" in text
    assert f"The journal takes no more records after step {FULL};" in text
    assert "training that goes on does so without Tamiyo" in text
    assert "the disk is full; free space or move the run directory (ENOSPC)" in text
    assert "remove the cause and start it again" in text


def test_the_page_says_what_the_nan_was_what_was_done_and_where_to_look(run: Path) -> None:
    text = read_page(run)
    assert "The training loss was NaN or infinite at step 154." in text
    assert "Tamiyo answered: ROLLBACK to step-00000150." in text
    assert "All losses have been finite again since step 155." in text
    assert "Something in steps 151 to 154 broke it." in text
    assert "Look at the batches of steps 151 to 154" in text


def test_the_page_says_what_grew(run: Path) -> None:
    text = read_page(run)
    assert re.search(r"Live parameters went from \d+ to \d+\.", text)
    assert re.search(r"Seed \S+: GERMINATED from step \d+, .*FOSSILIZED from step \d+", text)
    assert "GERMINATE 1" in text


def test_the_status_says_the_same_and_exits_with_one(run: Path) -> None:
    result = invoke("status", str(run))
    assert result.exit_code == 1
    assert "the disk is full" in " ".join(result.stdout.split())
    assert json.loads(invoke("status", str(run), "--json").stdout)["state"] == "stopped"


def test_the_report_of_a_run_on_a_full_disk_can_go_elsewhere(run: Path, tmp_path: Path) -> None:
    refused = invoke("report", str(run))
    assert refused.exit_code == 1
    assert "No space left on device; name another file" in refused.stderr
    assert invoke("report", str(run), "--output", str(tmp_path / "page.html")).exit_code == 0


def test_a_run_that_is_opened_again_goes_on_and_is_no_longer_stopped(
    run: Path, tmp_path: Path
) -> None:
    home = tmp_path / "tamiyo"
    shutil.copytree(run / "tamiyo", home)
    assert "disk is full" in read_lock(home).stopped
    lock = DirectoryLock(home, PosixFileSystem())
    assert read_lock(home).stopped == ""
    lock.release()
