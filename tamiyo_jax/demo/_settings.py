"""Settings and result of a demonstration, in the file ``demo.json``.

It is written before the first epoch and, with the result, after the last. So a run that was
killed continues with its settings, and a replay knows whether there is a result to compare with.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from tamiyo_jax.errors import ConfigurationError, PersistenceError

__all__ = [
    "RESULT",
    "DemoFile",
    "DemoPolicy",
    "RunSettings",
    "load_planned_steps",
    "load_settings",
    "read_result",
    "write_result",
]

RESULT = "demo.json"

DemoPolicy = Literal["heuristic", "graph"]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Settings that do not change when a run is resumed.

    Attributes:
      seed: random seed of the data split, the parameters and the order of the data.
      policy: the policy that decides.
      deterministic: packets carry no measured times, and deadlines are very long.
    """

    seed: int = 0
    policy: DemoPolicy = "heuristic"
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class DemoFile:
    """The content of ``demo.json``.

    Attributes:
      seed: as in `RunSettings`.
      policy: as in `RunSettings`.
      deterministic: as in `RunSettings`.
      planned_steps: number of optimiser steps that the run was started or last resumed with.
      steps: number of optimiser steps of a finished run; None before.
      test_accuracy: test accuracy of the grown network, in [0, 1]; None before.
    """

    seed: int
    policy: DemoPolicy
    deterministic: bool
    planned_steps: int | None = None
    steps: int | None = None
    test_accuracy: float | None = None


_FILE = TypeAdapter(DemoFile)


def load_settings(
    directory: Path,
    *,
    resume: bool,
    seed: int | None = None,
    policy: DemoPolicy | None = None,
    deterministic: bool | None = None,
) -> RunSettings:
    """Choose the settings of a new run, or read those of the run to resume.

    Args:
      directory: the run directory.
      resume: continue the run in `directory`.
      seed: None takes the recorded value of the run to resume, or the default for a new run;
        the same for the two others.
      policy: see `RunSettings`.
      deterministic: see `RunSettings`.

    Raises:
      ConfigurationError: the directory holds a run and `resume` is off, or a given value differs
        from the recorded value.
      PersistenceError: there is no run to resume, or ``demo.json`` is damaged.
    """
    kept: dict[str, object] = {}
    if resume:
        kept = asdict(read_result(directory))
    elif (directory / "tamiyo").exists():
        raise ConfigurationError(
            f"{directory} already holds a run; give --resume to continue it, or another "
            "--directory",
            directory=str(directory),
        )
    given = {"seed": seed, "policy": policy, "deterministic": deterministic}
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        if name in kept and kept[name] != value:
            raise ConfigurationError(
                f"{name} is {value}, but the run in {directory} was started with {name} "
                f"{kept[name]}; leave --{name} out to continue it, or give another --directory",
                field=name,
                value=value,
                recorded=kept[name],
            )
    known = {name: kept[name] for name in given if name in kept}
    return RunSettings(**(chosen | known))  # pyright: ignore[reportArgumentType] - of DemoFile's types


def load_planned_steps(directory: Path) -> int | None:
    """Read the number of optimiser steps that a run was started or last resumed with.

    Raises:
      PersistenceError: ``demo.json`` is missing or damaged.
    """
    return read_result(directory).planned_steps


def read_result(directory: Path) -> DemoFile:
    """Read ``demo.json``.

    Raises:
      PersistenceError: the file is missing or damaged.
    """
    path = directory / RESULT
    try:
        return _FILE.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise PersistenceError(
            f"there is no {path}, so {directory} holds no demonstration; run tamiyo-jax demo",
            path=str(path),
        ) from error
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise PersistenceError(
            f"{path} cannot be read: {why}; give another --directory", path=str(path)
        ) from error


def write_result(
    directory: Path,
    settings: RunSettings,
    *,
    planned_steps: int,
    steps: int | None = None,
    test_accuracy: float | None = None,
) -> None:
    """Write ``demo.json`` atomically: a crash leaves the old file or the new file.

    Args:
      directory: the run directory; created if missing.
      settings: the settings of the run.
      planned_steps: number of optimiser steps that the run is to take.
      steps: number of optimiser steps of a finished run.
      test_accuracy: test accuracy of its network, in [0, 1].

    Raises:
      PersistenceError: it cannot be written.
    """
    path = directory / RESULT
    content = DemoFile(
        **asdict(settings), planned_steps=planned_steps, steps=steps, test_accuracy=test_accuracy
    )
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
