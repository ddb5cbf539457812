"""The shapes in public signatures: what has another shape is refused, and what they say is so.

The checker runs in tests only (``--jaxtyping-packages``). It looks at arguments and results of
functions; the fields of a `NamedTuple` are looked at here.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from host.tiny_host import MADE, batch, make_state
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped
from policy.worlds import LAYOUT, legal, observation, packet, raw_graph, seed

from tamiyo_jax import host
from tamiyo_jax.config import HeuristicConfig, PolicyConfig
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.graph import build, init_normalizer, normalize
from tamiyo_jax.policy import HeuristicPolicy, apply, init_params, select

RAW = raw_graph(np.random.default_rng(0), {"seed": 2, "blueprint": 2, "layer": 3})
DETECTOR = host.new_detector(2)


def check_fields(values: Any) -> None:
    """Check that a `NamedTuple` holds what it declares; each axis name has one size in it."""
    checked = 0
    hints = typing.get_type_hints(type(values), localns={"ArrayTree": Any})  # a name of chex
    with jaxtyped("context"):
        for name, hint in hints.items():
            kinds = typing.get_args(hint) or (hint,)
            if all(isinstance(kind, type) and issubclass(kind, AbstractArray) for kind in kinds):
                value = getattr(values, name)
                assert isinstance(value, kinds), (type(values).__name__, name, value, hint)
                checked += 1
    assert checked, f"{type(values).__name__} declares no shape"


def decide(key: Any) -> Any:
    """The network's outputs, and what is chosen by them."""
    _, graph = build(LAYOUT, init_normalizer(), RAW)
    outputs = apply(init_params(PolicyConfig.small(), key), LAYOUT, graph)
    return outputs, select(outputs, legal(packet(seed("a", SeedStage.TRAINING))))


def follow_rules(key: Any) -> Any:
    """The outputs of a policy of rules, in NumPy."""
    del key
    policy = HeuristicPolicy(HeuristicConfig(), PolicyConfig())
    seen = observation(packet(seed("a", SeedStage.TRAINING)))
    state, outputs = policy.decide({}, policy.initial_state(), seen)
    del state
    return outputs, select(outputs, seen.legality), seen.legality, seen.raw


def train(key: Any) -> Any:
    """A step of a host, and all that it measures."""
    del key
    state, metrics = host.train_step(MADE, make_state(MADE), batch(0))
    numbers = metrics.statistics
    return state, metrics, numbers, numbers.signals, numbers.refusals, state.opt_state.detector


@pytest.mark.parametrize("make", [decide, follow_rules, train])
def test_named_arrays_have_the_shapes_that_they_declare(make: Callable[[Any], Any]) -> None:
    def check(key: Any) -> None:
        for values in make(key):
            check_fields(values)

    jax.eval_shape(check, jax.random.key(0))  # traced arrays have shapes; nothing is compiled
    check_fields(RAW)
    check_fields(init_normalizer())


def test_a_field_of_another_shape_is_found() -> None:
    with pytest.raises(AssertionError, match="senders"):
        check_fields(RAW._replace(senders=RAW.senders[:-1]))


WRONG: dict[str, Callable[[], object]] = {
    "graph: too few columns": lambda: normalize(
        LAYOUT,
        init_normalizer(),
        jnp.asarray(RAW.values)[:, :15],
        jnp.asarray(RAW.present)[:, :15],
    ),
    "graph: a mask of other rows": lambda: normalize(
        LAYOUT, init_normalizer(), jnp.asarray(RAW.values), jnp.asarray(RAW.present)[1:]
    ),
    "graph: a rate for each statistic": lambda: build(
        LAYOUT, init_normalizer(), RAW, rate=jnp.ones(3, jnp.float32)
    ),
    "policy: a key that is none": lambda: init_params(
        PolicyConfig.small(), jnp.zeros(2, jnp.float32)
    ),
    "host: a loss of a batch": lambda: partial(host.detect, DETECTOR)(
        loss=jnp.ones(8, jnp.float32),
        gradient_norm=jnp.float32(1),
        update_ratio=jnp.float32(1),
        layer_gradient_norms=jnp.ones(2, jnp.float32),
    ),
    "host: a key that is none": lambda: host.init_host(MADE, {}, jnp.zeros(2, jnp.float32)),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_array_of_another_shape_or_dtype_is_refused_while_tests_run(case: str) -> None:
    with pytest.raises(TypeCheckError):
        WRONG[case]()
