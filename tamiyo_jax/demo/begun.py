"""What a demonstration was begun with, and how it ended: the file ``demo.json``.

It is written before the first epoch and, with the end, after the last one. So a run that was
killed goes on as it was begun, and a replay knows whether there is an end to compare with.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from tamiyo_jax.errors import ConfigurationError, PersistenceError

__all__ = ["RESULT", "Begun", "DemoFile", "DemoPolicy", "begun_with", "read_result", "write_result"]

RESULT = "demo.json"

DemoPolicy = Literal["heuristic", "graph"]


@dataclass(frozen=True, slots=True)
class Begun:
    """What does not change in a run, however often it is resumed.

    Attributes:
      seed: of the data split, the parameters and the order of the data.
      policy: who decides.
      deterministic: packets carry no measured times, and deadlines are out of reach.
    """

    seed: int = 0
    policy: DemoPolicy = "heuristic"
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class DemoFile:
    """What ``demo.json`` holds.

    Attributes:
      seed: as in `Begun`.
      policy: as in `Begun`.
      deterministic: as in `Begun`.
      steps: optimiser steps of a run that has ended; None while it has not.
      test_accuracy: of its network, in [0, 1]; None while it has not ended.
    """

    seed: int
    policy: DemoPolicy
    deterministic: bool
    steps: int | None = None
    test_accuracy: float | None = None


_FILE = TypeAdapter(DemoFile)


def begun_with(
    directory: Path,
    *,
    resume: bool,
    seed: int | None = None,
    policy: DemoPolicy | None = None,
    deterministic: bool | None = None,
) -> Begun:
    """What to begin a run with, or what the one to resume was begun with.

    Args:
      directory: the run directory.
      resume: go on with the run in it.
      seed: None takes what the run was begun with, and of a new one the default; so with the
        two others.
      policy: see `Begun`.
      deterministic: see `Begun`.

    Raises:
      ConfigurationError: the directory holds a run and `resume` is off, or the run was begun
        with something else than was given.
      PersistenceError: there is no run to resume, or its file is damaged.
    """
    kept: dict[str, object] = {}
    if resume:
        kept = asdict(read_result(directory))
    elif (directory / "tamiyo").exists():
        raise ConfigurationError(
            f"{directory} holds a run already; give --resume to go on with it, or another "
            "--directory",
            directory=str(directory),
        )
    given = {"seed": seed, "policy": policy, "deterministic": deterministic}
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        if name in kept and kept[name] != value:
            raise ConfigurationError(
                f"{name} is {value}, but the run in {directory} was begun with {name} "
                f"{kept[name]}; leave --{name} out to go on with it, or begin another --directory",
                field=name,
                value=value,
                begun=kept[name],
            )
    known = {name: kept[name] for name in given if name in kept}
    return Begun(**(chosen | known))  # pyright: ignore[reportArgumentType] - of DemoFile's types


def read_result(directory: Path) -> DemoFile:
    """Read ``demo.json``.

    Raises:
      PersistenceError: there is none, or it is damaged.
    """
    path = directory / RESULT
    try:
        return _FILE.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise PersistenceError(
            f"there is no {path}, so {directory} holds no demonstration; make one with tamiyo-jax "
            "demo",
            path=str(path),
        ) from error
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not what demo writes"
        raise PersistenceError(
            f"{path} cannot be read: {why}; begin another --directory", path=str(path)
        ) from error


def write_result(
    directory: Path, begun: Begun, *, steps: int | None = None, test_accuracy: float | None = None
) -> None:
    """Write ``demo.json`` in one piece: a crash leaves the old one or the new one.

    Args:
      directory: the run directory; made if it does not exist.
      begun: what the run was begun with.
      steps: of a run that has ended.
      test_accuracy: of its network, in [0, 1].

    Raises:
      PersistenceError: it cannot be written.
    """
    path = directory / RESULT
    content = DemoFile(**asdict(begun), steps=steps, test_accuracy=test_accuracy)
    unfinished = path.with_suffix(".json.new")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(content), indent=1))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise PersistenceError(
            f"{path} cannot be written: {error.strerror}; name another --directory",
            path=str(path),
        ) from error
