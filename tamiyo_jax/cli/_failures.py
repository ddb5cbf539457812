"""Run the command line so that every failure is a single line on stderr, with status 1 or 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape

from tamiyo_jax.cli._output import escape_controls, problems
from tamiyo_jax.errors import TamiyoError

__all__ = ["run_app"]

FAILED, MISUSED = 1, 2
_INTERRUPTED = 130  # what Typer makes of Ctrl-C

# ClickException, of click or of the copy of it that newer versions of Typer carry.
_Misuse: Any = typer.BadParameter.__mro__[2]
_REPORTED = (
    TamiyoError,
    OSError,
    UnicodeEncodeError,
    MemoryError,
    KeyboardInterrupt,
    typer.Abort,
)


def run_app(app: Callable[..., object]) -> int:
    """Run a Typer application on `sys.argv` and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # On an ASCII terminal a character that it lacks is escaped, and raises nothing.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()  # now, so that a full disk is reported here
    except BrokenPipeError:  # the reader of a pipe, such as head, has ended
        _discard_output()
        return FAILED
    except (*_REPORTED, _Misuse) as error:
        return _report_failure(error)
    if status == _INTERRUPTED:
        return _report_failure(KeyboardInterrupt())
    return status if isinstance(status, int) else 0


def _report_failure(error: BaseException) -> int:
    match error:
        case TamiyoError():
            _explain(type(error).__name__, str(error))
        case OSError():
            place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
            _explain(type(error).__name__, f"{place}{error.strerror or error}")
            _discard_output()
        case UnicodeEncodeError():
            _explain("misuse", "an argument is not text of this locale; set LC_ALL=C.UTF-8")
            return MISUSED
        case MemoryError():
            _explain("MemoryError", "there is not enough memory for this; use a smaller file")
        case KeyboardInterrupt() | typer.Abort():
            _explain("interrupted", "the command was stopped")
        case _ if "NoArgsIsHelp" in type(error).__name__:
            error.show()  # pyright: ignore[reportAttributeAccessIssue]
            return MISUSED
        case _:
            _explain("misuse", f"{error.format_message()} (see --help)")  # pyright: ignore[reportAttributeAccessIssue]
            return MISUSED
    return FAILED


def _explain(name: str, message: str) -> None:
    line = f"[red]{name}[/red]: {escape(escape_controls(message))}"
    problems.print(line, highlight=False, soft_wrap=True)


def _discard_output() -> None:
    """Let the interpreter flush what is left to nowhere when it exits."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, AttributeError, ValueError):  # not a file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
