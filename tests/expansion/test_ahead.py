"""The next program is built while the present one trains."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tamiyo_jax import expansion
from tamiyo_jax.errors import CompilationError, TamiyoError


def test_training_goes_on_while_the_next_program_is_built() -> None:
    step = jax.jit(lambda x: x + jnp.float32(1))
    release = threading.Event()

    def build():
        assert release.wait(60)
        return expansion.compile_program(lambda x: x * jnp.float32(2), jnp.zeros(4, jnp.float32))

    ahead = expansion.CompileAhead(build)
    x = jnp.zeros(3, jnp.float32)
    for _ in range(5):
        x = step(x)
        assert not ahead.done
    release.set()
    double = ahead.result()
    assert ahead.done
    np.testing.assert_array_equal(double(jnp.ones(4, jnp.float32)), np.full(4, 2, np.float32))


def test_a_program_that_was_built_ahead_is_compiled_no_second_time(count_compilations) -> None:
    shape = jax.ShapeDtypeStruct((5,), jnp.float32)
    ahead = expansion.CompileAhead(lambda: expansion.compile_program(jnp.sin, shape))
    program = ahead.result()
    x = jnp.ones(5, jnp.float32)
    with count_compilations() as compile_program:
        program(x)
        program(x)
    assert compile_program.count == 0


def test_an_error_while_building_is_raised_where_the_program_is_taken() -> None:
    def build():
        return expansion.compile_program(lambda x: x @ x, jax.ShapeDtypeStruct((2, 3), jnp.float32))

    step = jax.jit(lambda x: x + jnp.float32(1))
    ahead = expansion.CompileAhead(build)
    x = step(jnp.zeros(3, jnp.float32))
    with pytest.raises(CompilationError, match="go on with the present one") as raised:
        ahead.result()
    assert isinstance(raised.value, TamiyoError)
    assert isinstance(raised.value.__cause__, TypeError)
    np.testing.assert_array_equal(step(x), np.full(3, 2, np.float32))


PROGRAM = """
import sys, jax, jax.numpy as jnp
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
seen = []
jax.monitoring.register_event_listener(lambda event, **_: seen.append(event))
from tamiyo_jax import expansion
shape = jax.ShapeDtypeStruct((7,), jnp.float32)
expansion.CompileAhead(lambda: expansion.compile_program(lambda x: jnp.sin(x) * 2, shape)).result()
print(seen.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.mark.slow
def test_a_process_finds_the_program_of_an_earlier_one_in_the_persistent_cache(
    tmp_path: Path,
) -> None:
    hits = [
        int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, str(tmp_path)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for _ in range(2)
    ]
    assert hits[0] == 0
    assert hits[1] > 0


def test_an_interrupted_wait_can_be_taken_up_again() -> None:
    may_end = threading.Event()

    def build() -> str:
        may_end.wait()
        return "built"

    ahead = expansion.CompileAhead(build)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            ahead.result()
    finally:
        signal.signal(signal.SIGALRM, before)
        timer = threading.Timer(0.2, may_end.set)
        timer.start()
    assert not ahead.done
    assert ahead.result() == "built"
    timer.join()
