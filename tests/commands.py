"""The command line in this process: what it prints, and its exit status."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from tamiyo_jax.cli import main


class Result(NamedTuple):
    """What a user sees of a command."""

    exit_code: int
    stdout: str
    stderr: str


def invoke(*arguments: str) -> Result:
    """Run ``tamiyo-jax`` with arguments, through the entry point."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["tamiyo-jax", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 0
    return Result(status, out.getvalue(), err.getvalue())


def dump_journal(directory: Path, *options: str) -> list[dict[str, Any]]:
    """The records that ``tamiyo-jax journal dump --json`` prints."""
    result = invoke("journal", "dump", str(directory), "--json", *options)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]
