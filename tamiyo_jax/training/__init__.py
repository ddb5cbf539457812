"""The training side: `Plug` for a loop of your own, and the reference loop."""

from tamiyo_jax.training._loop import (
    Controller,
    LoopState,
    Record,
    RunResult,
    accuracy,
    grow_all,
    init_loop,
    run,
)
from tamiyo_jax.training._plug import Plug
from tamiyo_jax.training._task import Data, Task

__all__ = [
    "Controller",
    "Data",
    "LoopState",
    "Plug",
    "Record",
    "RunResult",
    "Task",
    "accuracy",
    "grow_all",
    "init_loop",
    "run",
]
