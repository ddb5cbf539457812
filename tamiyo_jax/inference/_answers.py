"""Checks of what a policy answers, before anything is made of it.

A custom policy may return anything. What the rest of a step relies on is checked here, so that
an answer of a wrong shape is a failure of the policy and not an error somewhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import jax
import numpy as np

from tamiyo_jax.controller import Answer
from tamiyo_jax.errors import PolicyFailureError
from tamiyo_jax.policy import NUM_ACTIONS, Observation, PolicyOutputs, Rationale

__all__ = ["check_answer"]

# What the shape of an output is made of: numbers, or the name of a size of the observation.
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "policy_logits": (NUM_ACTIONS,),
    "policy_params": (4,),
    "param_delta": (),
    "blending_logits": ("methods",),
    "risk_logits": (5,),
    "value": (),
    "schedule_params": (2,),
    "breaker_logits": (2,),
    "seed_scores": ("seeds",),
    "blueprint_scores": ("blueprints",),
}
_BOUNDED = ("policy_params", "param_delta", "schedule_params")  # in [-1, 1]
_ROUNDING = 1e-5


def check_answer(
    answer: Answer[Any], before: object, observation: Observation, methods: int
) -> None:
    """Refuse an answer that is not as `PolicyOutputs` says.

    Values that are not finite are left to `propose`, which knows what is padding.

    Args:
      answer: the answer, on the host.
      before: the policy state that the policy was given; the next one is of the same kind.
      observation: what it was asked about.
      methods: number of blending methods.

    Raises:
      PolicyFailureError: names each output, what it is and what it must be.
    """
    legality = observation.legality
    seeds, blueprints = legality.seeds.shape[1], len(legality.blueprints)
    sizes = {"methods": methods, "seeds": seeds, "blueprints": blueprints}
    problems = [*_find_output_problems(answer.outputs, sizes)]
    if problem := _find_state_problem(before, answer.policy_state):
        problems.append(problem)
    if problems:
        raise PolicyFailureError(
            f"the policy's answer is ill-formed: {'; '.join(problems)}. See PolicyOutputs for "
            "shapes and ranges",
            packet_id=observation.packet.packet_id,
        )


def _find_output_problems(outputs: object, sizes: dict[str, int]) -> Iterator[str]:
    if not isinstance(outputs, PolicyOutputs):
        yield f"the outputs are {type(outputs).__name__}, not PolicyOutputs"
        return
    rationale = cast(object, outputs.rationale)  # a custom policy may put anything there
    if rationale is not None and not isinstance(rationale, Rationale):
        yield f"rationale is {type(rationale).__name__}, neither a Rationale nor None"
    values: dict[str, Any] = outputs.named_arrays()
    for name, value in values.items():
        if not isinstance(value, np.ndarray | np.generic):
            yield f"{name} is {type(value).__name__}, not an array"
            continue
        array = np.asarray(cast(Any, value))
        shape: tuple[int | str, ...] = _SHAPES.get(name, array.shape)
        wanted = tuple(sizes.get(str(size), size) for size in shape)
        if array.shape != wanted or array.dtype != np.float32:
            yield f"{name} is {_describe(array)}, not float32{list(wanted)}"
        elif name in _BOUNDED and np.max(np.abs(array)) > 1.0 + _ROUNDING:
            yield f"{name} is {array.tolist()}, outside [-1, 1]"


def _find_state_problem(before: object, after: object) -> str | None:
    tree: Any = jax.tree
    structure, new_structure = tree.structure(before), tree.structure(after)
    if new_structure != structure:
        return f"the next policy state is {new_structure}, the one before was {structure}"
    for old, new in zip(tree.leaves(before), tree.leaves(after), strict=True):
        if _describe(new) != _describe(old):
            return f"a leaf of the next policy state is {_describe(new)}, it was {_describe(old)}"
    return None


def _describe(leaf: Any) -> str:  # noqa: ANN401 - an array of any kind, or anything else
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return f"{leaf.dtype}{list(leaf.shape)}"  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return type(leaf).__name__
