"""Compiling the next program while the present one trains.

    step = compile_program(train_step, *shapes)  # of the smaller network
    ahead = CompileAhead(lambda: (compile_program(grow, …), compile_program(larger_step, …)))
    for batch in batches:
        if ahead.done:
            grow, step = ahead.result()
            state = grow(state)
        state, loss = step(state, batch)

The first run of a program takes several steps' time by itself, so let what builds it run it
once, on zeros. XLA compiles outside Python's lock, so training goes on meanwhile, slower where
it has the same cores. With ``jax_compilation_cache_dir`` set, programs come from and go to
JAX's persistent cache as always.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax

from tamiyo_jax.errors import CompilationError

__all__ = ["CompileAhead", "compile_program"]

Program = TypeVar("Program")


def compile_program(
    function: Callable[..., Any],
    *arguments: Any,  # noqa: ANN401
) -> jax.stages.Compiled:
    """The program of a function for arguments of these shapes.

    Args:
      function: jitted or not; one that is keeps its options, such as donated arguments.
      *arguments: arrays or `jax.ShapeDtypeStruct`; their values are not looked at.
    """
    jitted = function if isinstance(function, jax.stages.Wrapped) else jax.jit(function)
    return jitted.lower(*arguments).compile()


class CompileAhead(Generic[Program]):
    """What `build` gives, built in a thread of its own.

    JAX's settings are those of the process: a thread sees no `with jax.default_device(…)` of
    another. A process that ends waits for its thread.

    Args:
      build: traces and compiles.
    """

    def __init__(self, build: Callable[[], Program]) -> None:
        self._build = build
        self._built: list[Program] = []
        self._error: BaseException | None = None
        self._ended = threading.Event()  # Python 3.11 cannot join a thread again, once interrupted
        threading.Thread(target=self._run, name="compile-ahead").start()

    @property
    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._ended.is_set()

    def result(self) -> Program:
        """What was built; waits for it.

        Raises:
          CompilationError: it could not be built; `__cause__` says why. Nothing has changed, and
            training can go on with the present program.
        """
        self._ended.wait()
        if self._error is not None:
            kind = type(self._error).__name__
            raise CompilationError(
                f"the next program could not be built ({kind}: {self._error}); go on with the "
                "present one"
            ) from self._error
        return self._built[0]

    def _run(self) -> None:
        try:
            self._built.append(self._build())
        except BaseException as error:  # noqa: BLE001 - raised where the program is taken
            self._error = error
        finally:
            self._ended.set()
