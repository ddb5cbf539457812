"""A forked child of a process with a controller: refused, harmless, and able to exit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tamiyo_jax.journal import RecordType, read_journal

CHILD = """
import os, sys, warnings
from pathlib import Path
from making import make_packet, open_tamiyo, story
from tamiyo_jax.errors import ForkedProcessError

warnings.simplefilter("ignore")  # JAX warns of os.fork
with open_tamiyo(Path(sys.argv[1])) as tamiyo:
    packets = story(3)
    tamiyo.step(packets[0])
    tamiyo._lock.acquire()  # as a thread of the parent would hold it at the fork
    child = os.fork()
    if child == 0:
        calls = {
            "step": lambda: tamiyo.step(packets[1]),
            "step_many": lambda: tamiyo.step_many(packets[1:]),
            "set_conservative": lambda: tamiyo.set_conservative(True, "by hand"),
            "restore": lambda: tamiyo.restore(tamiyo.state),
            "flush": tamiyo.flush,
            "publish": tamiyo.publish,
        }
        for name, call in calls.items():
            try:
                call()
            except ForkedProcessError as error:
                assert (error.pid, error.owner) == (os.getpid(), os.getppid())
            else:
                print("not refused:", name, flush=True)
                os._exit(1)
        sys.exit(7)  # leaves the with block, which closes nothing
    _, status = os.waitpid(child, 0)
    tamiyo._lock.release()
    assert os.waitstatus_to_exitcode(status) == 7, status
    for packet in packets[1:]:
        tamiyo.step(packet)
"""


def test_a_forked_child_is_refused_by_every_call_and_exits_and_the_parent_goes_on(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = read_journal(tmp_path)
    assert found.clean
    assert [record.type for record in found.records].count(RecordType.STEP) == 3
