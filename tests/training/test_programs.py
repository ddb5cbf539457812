"""A run goes on while the programs of a grown network are compiled, and takes them over between
two epochs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import jax
from host.tiny_host import BANK, SEED_ID, batch, make_host, make_state, operate
from summaries import equal_trees

from tamiyo_jax import host
from tamiyo_jax.contracts import SeedOperation, SeedStage
from tamiyo_jax.errors import CompilationError
from tamiyo_jax.training._programs import Programs

OP = SeedOperation
MADE = make_host()
STEP = jax.jit(partial(host.train_step, MADE))


def start(compile_for: Callable[[host.HostState], object], *, wait: bool = False):
    """Programs that run for a dormant host, and that host."""
    programs, state = Programs(compile_for, wait=wait), make_state(MADE)
    assert programs.inside(state)[0] is state
    return programs, state


def test_a_seed_is_carried_beside_the_programs_until_those_with_it_are_there() -> None:
    release = threading.Event()
    programs, state = start(lambda host: release.wait(600))
    state = operate(state, OP.GERMINATE, 1)
    for operation in (None, OP.START_TRAINING):
        state = state if operation is None else operate(state, operation)
        inside, _ = programs.inside(state)
        assert inside.slots[SEED_ID].params == {}
        trained, _ = STEP(inside, batch(0))
        after = programs.rejoin(trained)
        assert equal_trees(after.slots[SEED_ID].params, state.slots[SEED_ID].params)
        assert (
            int(after.slots[SEED_ID].state.age_steps)
            == int(state.slots[SEED_ID].state.age_steps) + 1
        )
        state = after
    release.set()
    programs._ahead._ended.wait()
    assert programs.inside(state)[0] is state


def test_a_rollback_while_a_seed_is_carried_goes_on_without_it() -> None:
    release = threading.Event()
    programs, small = start(lambda host: release.wait(600))
    programs.inside(operate(small, OP.GERMINATE, 1))
    assert programs.inside(small)[0] is small
    assert equal_trees(programs.rejoin(small), small)
    release.set()


def test_a_seed_that_is_to_blend_in_is_waited_for() -> None:
    built = []
    programs, state = start(built.append)
    for operation in (OP.GERMINATE, OP.START_TRAINING, OP.START_GRAFTING):
        state = operate(state, operation, 1)
    assert programs.inside(state)[0] is state
    assert [list(program.slots[SEED_ID].params) for program in built] == [["steep"]]


def test_a_run_that_must_be_like_another_compiles_when_it_needs_to() -> None:
    built = []
    programs, state = start(built.append, wait=True)
    state = operate(state, OP.GERMINATE, 1)
    assert programs.inside(state)[0] is state
    assert not built


def test_a_program_that_cannot_be_compiled_is_an_error_once_and_the_old_one_goes_on() -> None:
    def fail_to_compile(host: host.HostState) -> None:
        raise TypeError("no program")

    programs, state = start(fail_to_compile)
    for operation in (OP.GERMINATE, OP.START_TRAINING, OP.START_GRAFTING):
        state = operate(state, operation, 1)
    inside, error = programs.inside(state)
    assert isinstance(error, CompilationError)
    assert "no program" in str(error)
    assert inside.slots[SEED_ID].params == {}
    inside, error = programs.inside(state)
    assert error is None
    assert inside.slots[SEED_ID].params == {}
    culled = operate(state, OP.CULL)
    assert programs.inside(culled)[0] is culled


def test_what_was_compiled_ahead_is_compiled_no_second_time(count_compilations) -> None:
    step, data = jax.jit(partial(host.train_step, MADE)), batch(0)
    programs, state = start(lambda host: step.lower(host, data).compile())
    state, _ = step(state, data)
    state = operate(state, OP.GERMINATE, list(BANK).index("gentle"))
    programs.inside(state)
    programs._ahead._ended.wait()
    state, _ = programs.inside(state)
    with count_compilations() as compiled:
        state, _ = step(state, data)
        state, _ = step(state, data)
    assert compiled.count == 0
    assert int(state.slots[SEED_ID].state.stage) == SeedStage.GERMINATED
