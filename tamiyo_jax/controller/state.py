"""`TamiyoState`: everything that decides, explicit, and its text form.

The text form is what journal records and checkpoints carry. Floats are written with all
their digits and arrays as their bytes, so a state that went through it is bit-identical.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from pydantic import TypeAdapter, ValidationError

from tamiyo_jax.contracts import CircuitBreakerState
from tamiyo_jax.controller.windows import Window
from tamiyo_jax.errors import CheckpointMismatchError
from tamiyo_jax.graph import GraphLayout, Registries
from tamiyo_jax.risk import RiskState
from tamiyo_jax.risk import from_json as risk_from_json
from tamiyo_jax.risk import to_json as risk_to_json

__all__ = ["AppliedPolicy", "TamiyoState", "initial_state", "state_from_json", "state_to_json"]

PolicyState = TypeVar("PolicyState")

_LAYOUT = TypeAdapter(GraphLayout | None)
_WINDOWS = TypeAdapter(tuple[Window, ...])


@dataclass(frozen=True, slots=True)
class AppliedPolicy:
    """A policy update that was applied; `digest` is the SHA-256 of its parameters."""

    policy_id: str
    digest: str
    version: str


_POLICIES = TypeAdapter(tuple[AppliedPolicy, ...])


@dataclass(frozen=True, slots=True)
class TamiyoState(Generic[PolicyState]):
    """The controller's state between two steps.

    Attributes:
      policy_state: the policy's own: the normaliser, the heuristic's counters, or whatever
        pytree of arrays a policy of yours carries.
      registries: string-to-index maps that the encoder grows.
      risk: breakers, conservative mode, pause window, last validation loss.
      windows: open observation windows, oldest first.
      policies: the live policy update, and before it the one that a rollback returns to;
        in front of them stand the parameters given to `Tamiyo.open`.
      host_breaker: the host's breaker as last commanded.
      missing_features: optional features that were missing on the last step.
      truncated: what `overflow="truncate"` cut on the last step, by type or relation.
      layout: layout of the last step; None before the first.
      steps: decisions made.
      failures: steps that raised.
    """

    policy_state: PolicyState
    registries: Registries
    risk: RiskState
    windows: tuple[Window, ...] = ()
    policies: tuple[AppliedPolicy, ...] = ()
    host_breaker: CircuitBreakerState = CircuitBreakerState.CLOSED
    missing_features: frozenset[str] = frozenset()
    truncated: tuple[tuple[str, int], ...] = ()
    layout: GraphLayout | None = None
    steps: int = 0
    failures: int = 0


def initial_state(policy_state: PolicyState) -> TamiyoState[PolicyState]:
    """The state before the first step."""
    return TamiyoState(policy_state, Registries.empty(), RiskState())


def state_to_json(state: TamiyoState[PolicyState], *, registries: bool = True) -> str:
    """The text form; without registries it is the small state that every step records."""
    fields: dict[str, object] = {
        "policy_state": [_leaf_to_json(leaf) for leaf in jax.tree.leaves(state.policy_state)],
        "risk": risk_to_json(state.risk),
        "windows": _WINDOWS.dump_python(state.windows, mode="json"),
        "policies": _POLICIES.dump_python(state.policies, mode="json"),
        "host_breaker": int(state.host_breaker),
        "missing_features": sorted(state.missing_features),
        "truncated": state.truncated,
        "layout": _LAYOUT.dump_python(state.layout, mode="json"),
        "steps": state.steps,
        "failures": state.failures,
    }
    if registries:
        fields["registries"] = state.registries.to_plain()
    return json.dumps(fields, separators=(",", ":"), sort_keys=True)


def state_from_json(
    text: str,
    policy_state: PolicyState,
    *,
    registries: Registries | None = None,
) -> TamiyoState[PolicyState]:
    """Read a state back.

    Args:
      text: what `state_to_json` wrote.
      policy_state: any state of the same policy; gives structure, shapes and dtypes.
      registries: required where the text carries none.

    Raises:
      CheckpointMismatchError: the text is of another policy or not a state at all.
    """
    try:
        fields = json.loads(text)
        leaves, structure = jax.tree.flatten(policy_state)
        stored = fields["policy_state"]
        if len(stored) != len(leaves):
            raise CheckpointMismatchError(
                f"the stored policy state has {len(stored)} leaves, this policy's has "
                f"{len(leaves)}; open the directory with the policy that wrote it",
                stored=len(stored),
                expected=len(leaves),
            )
        restored = [_leaf_from_json(*pair) for pair in zip(stored, leaves, strict=True)]
        maps = Registries.from_plain(fields["registries"]) if registries is None else registries
        return TamiyoState(
            policy_state=jax.tree.unflatten(structure, restored),
            registries=maps,
            risk=risk_from_json(fields["risk"]),
            windows=_WINDOWS.validate_python(fields["windows"]),
            policies=_POLICIES.validate_python(fields["policies"]),
            host_breaker=CircuitBreakerState(fields["host_breaker"]),
            missing_features=frozenset(fields["missing_features"]),
            truncated=tuple((name, count) for name, count in fields["truncated"]),
            layout=_LAYOUT.validate_python(fields["layout"]),
            steps=fields["steps"],
            failures=fields["failures"],
        )
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        raise CheckpointMismatchError(
            f"this is not a controller state of this build: {error}", cause=str(error)
        ) from error


def with_failure(state: TamiyoState[PolicyState], risk: RiskState) -> TamiyoState[PolicyState]:
    """All that a failed step may change: the failure count, breakers, conservative mode."""
    return replace(state, risk=risk, failures=state.failures + 1)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    """Made once per type: making one costs more than a step."""
    return TypeAdapter(kind)


def _leaf_to_json(leaf: object) -> object:
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        array = np.asarray(leaf)
        data = base64.b64encode(array.tobytes()).decode("ascii")
        return {"dtype": str(array.dtype), "shape": array.shape, "data": data}
    return _adapter(type(leaf)).dump_python(leaf, mode="json")


def _leaf_from_json(stored: object, like: object) -> object:
    if isinstance(like, jax.Array | np.ndarray | np.generic):
        if not isinstance(stored, Mapping):
            raise TypeError("expected an array")
        expected = (str(like.dtype), list(like.shape))
        if (stored["dtype"], list(stored["shape"])) != expected:
            raise CheckpointMismatchError(
                f"a policy state array is {stored['dtype']}{stored['shape']}, this policy's is "
                f"{expected[0]}{expected[1]}; open the directory with the policy that wrote it",
                stored=str(stored["shape"]),
                expected=str(like.shape),
            )
        array = np.frombuffer(base64.b64decode(stored["data"]), dtype=like.dtype)
        return array.reshape(like.shape)
    return _adapter(type(like)).validate_python(stored)
