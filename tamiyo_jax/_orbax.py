"""Calls of Orbax that Ctrl-C cannot leave half done.

A save of Orbax is several threads that wait for each other. If the call is interrupted between
starting the first and the last of them, they wait for ever, and the process never exits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

__all__ = ["run_to_end"]

P = ParamSpec("P")
T = TypeVar("T")


def run_to_end(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in another thread, and return its result or raise its error.

    Python runs handlers of signals in the main thread alone. What one raises before the function
    has begun, a `KeyboardInterrupt` for instance, is raised at once, and later when the function
    has ended.
    """
    gate, end = SimpleQueue[None](), SimpleQueue[None]()
    results: list[T] = []
    errors: list[BaseException] = []
    context = copy_context()

    def call() -> None:
        gate.get()
        try:
            results.append(context.run(function, *args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the caller
            errors.append(error)
        end.put(None)
        end.put(None)  # the caller may be interrupted when it has taken the first

    # `join` is not used: in Python 3.11, interrupted once, it no longer waits for the thread.
    thread, began = Thread(target=call, name="orbax", daemon=True), False
    try:
        thread.start()  # interrupted here, it stays at the gate and runs nothing
        began = True
        gate.put(None)
        end.get()
    except BaseException:
        if began:
            gate.put(None)  # a second one does no harm
            end.get()
        raise
    if errors:
        raise errors[0]
    return results[0]
