"""What runs in a worker process: ``python -m tamiyo_jax.runtime.worker_main FD PARENT``.

The first message says what to load; every further one is answered by it. The process ends
when its connection does, whatever ended the parent.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.runtime.framing import Load, Raised, receive, send

__all__ = ["main"]

_OUT_OF_MEMORY = 70  # EX_SOFTWARE of sysexits.h
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def main() -> None:
    """Serve until the connection closes."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    faulthandler.enable()
    Path("/proc/self/oom_score_adj").write_text("1000")
    with socket.socket(fileno=descriptor) as connection:
        try:
            load: Load = receive(connection)
            resource.setrlimit(resource.RLIMIT_DATA, (load.memory_bytes, load.memory_bytes))
            module, _, factory = load.factory.partition(":")
            answer: Callable[[Any], Any] | None = None

            def begin() -> None:
                nonlocal answer
                answer = getattr(importlib.import_module(module), factory)(**load.arguments)

            send(connection, _attempt(begin))
            while answer is not None:
                message = receive(connection)
                send(connection, _attempt(lambda: answer(message)))  # noqa: B023 - called at once
        except ConnectionError:
            return


def _attempt(work: Callable[[], Any]) -> Any:  # noqa: ANN401 - what it returns, or `Raised`
    """Whatever a policy of the user raises goes home as a message, and is raised there."""
    try:
        return work()
    except MemoryError:
        traceback.print_exc()
        os._exit(_OUT_OF_MEMORY)  # what such a process answers afterwards is not to be trusted
    except Exception as error:  # noqa: BLE001 - it is raised at home
        known = error if isinstance(error, TamiyoError) else None
        return Raised(known, f"{type(error).__name__}: {error}", traceback.format_exc())


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(0)


if __name__ == "__main__":
    main()
