"""A real controller killed at random moments: every step that returned is on record."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tamiyo_jax.journal import RecordType, read_journal
from tamiyo_jax.storage import decode_step

_RUN = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from making import make_config, make_packet, open_tamiyo, story
storage = make_config().storage.model_copy(update={{"segment_bytes": 40_000}})
with open_tamiyo(
    Path({directory!r}), config=make_config().model_copy(update={{"storage": storage}})
) as tamiyo:
    for step, packet in enumerate(story(100_000)):
        print(tamiyo.step(packet).report_id, flush=True)
"""


@pytest.mark.slow
def test_every_step_that_returned_is_there_after_sigkill(tmp_path: Path) -> None:
    chance = random.Random(0)
    returned: list[str] = []
    script = _RUN.format(path=[entry for entry in sys.path if entry], directory=str(tmp_path))
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            returned.append(process.stdout.readline().strip())
            time.sleep(chance.uniform(0.0, 0.5))
            process.kill()
            # The last line may be cut off by the kill; a step whose id is whole had returned.
            lines = process.stdout.read().splitlines(keepends=True)
        returned += [line.strip() for line in lines if line.endswith("\n")]
        found = {
            decode_step(record.payload).report.report_id
            for record in read_journal(tmp_path).records
            if record.type is RecordType.STEP
        }
        assert set(returned) <= found
        assert len(found) - len(set(returned)) <= 6  # those that were written but had not returned
    assert len(list((tmp_path / "journal").iterdir())) > 1, "nothing was rotated"
    assert len(returned) > 50
