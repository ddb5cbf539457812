"""Calls of Orbax that Ctrl-C cannot leave half done.

A save of Orbax is several threads that wait for each other. If the call is interrupted between
starting the first and the last of them, they wait for ever, and the process never exits.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import ParamSpec, TypeVar

__all__ = ["run_to_end"]

P = ParamSpec("P")
T = TypeVar("T")


def run_to_end(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in another thread, and return its result or raise its error.

    Python interrupts the main thread alone. A `KeyboardInterrupt` is raised here once the function
    has ended.
    """
    with ThreadPoolExecutor(1, "orbax") as pool:  # leaving it waits for the thread
        return pool.submit(copy_context().run, function, *args, **kwargs).result()
