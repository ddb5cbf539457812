"""A training run that is preempted: ``python preempted.py DIRECTORY MANNER``; see test_signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from making import make_packet, open_tamiyo

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.errors import PersistenceError
from tamiyo_jax.policy import HeuristicPolicy, Observation, PolicyOutputs


class Slow(HeuristicPolicy):
    """Thinks for long enough to be interrupted, and has a signal sent in its third step."""

    def __init__(self, config: TamiyoConfig) -> None:
        super().__init__(config.heuristic, config.policy)
        self._decisions = 0

    def decide(
        self, params: Any, policy_state: Any, observation: Observation
    ) -> tuple[Any, PolicyOutputs]:
        self._decisions += 1
        if self._decisions == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        return super().decide(params, policy_state, observation)


def main(directory: str, manner: str) -> None:
    tamiyo = open_tamiyo(Path(directory), policy="preempted:Slow")
    asked = threading.Event()

    def preempt(*_: object) -> None:
        asked.set()
        tamiyo.set_conservative(True, "preempted")
        tamiyo.flush()
        tamiyo.close()
        if manner == "exit":
            sys.exit(3)

    signal.signal(signal.SIGTERM, preempt)
    for step in range(1000):
        try:
            tamiyo.step(make_packet(step))
        except PersistenceError:  # it is closed
            break
    assert asked.is_set()


if __name__ == "__main__":
    main(*sys.argv[1:])
