"""A process that writes a run: ``writing_process.py DIRECTORY STEPS``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from report.runs import START_NS, packets, record

from tamiyo_jax.config import StorageConfig
from tamiyo_jax.controller import initial_state
from tamiyo_jax.storage import StorageManager


def main() -> None:
    directory, steps = Path(sys.argv[1]), int(sys.argv[2])
    # Segments so small that they turn over and are retired while another process reads.
    config = StorageConfig(segment_bytes=65536, retention_hours=1e9)
    state = initial_state(None)
    with StorageManager.open(directory, config, None, clock=lambda: START_NS) as manager:
        manager.start(state)
        sys.stdout.write("open\n")
        sys.stdout.flush()
        for number, packet in enumerate(packets(steps), start=1):
            manager.append_step(record(number, packet), state)
            time.sleep(0.01)


if __name__ == "__main__":
    main()
