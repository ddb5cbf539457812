"""What runs in a worker process, once `_start.py` has tied it to its parent.

The first message says what to load; every further one is answered by it. The process ends
when its connection does, whatever ended the parent.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import resource
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamiyo_jax.errors import TamiyoError
from tamiyo_jax.workers._messages import Load, Raised, receive, send

__all__ = ["main"]

_OUT_OF_MEMORY = 70  # EX_SOFTWARE of sysexits.h


def main() -> None:
    """Serve until the connection closes."""
    descriptor = int(sys.argv[1])
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
    """What a custom policy raises, of whatever kind, is sent to the parent and raised there."""
    try:
        return work()
    except MemoryError:
        traceback.print_exc()
        os._exit(_OUT_OF_MEMORY)  # what such a process answers afterwards is not to be trusted
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is raised at home
        known = error if isinstance(error, TamiyoError) else None
        return Raised(known, f"{type(error).__name__}: {error}", traceback.format_exc())
