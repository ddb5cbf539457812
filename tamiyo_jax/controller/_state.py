"""`TamiyoState`: everything that decides, explicit, and its text form.

The text form is what journal records and checkpoints carry. Floats are written with all
their digits and arrays as their bytes, so a state that went through it is bit-identical.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Generic, TypeVar, cast

import jax
import numpy as np
from pydantic import TypeAdapter, ValidationError

from tamiyo_jax.contracts import CircuitBreakerState
from tamiyo_jax.controller._windows import Window
from tamiyo_jax.errors import CheckpointMismatchError
from tamiyo_jax.graph import GraphLayout, Registries
from tamiyo_jax.risk import BreakerState, RiskState
from tamiyo_jax.risk import from_json as risk_from_json
from tamiyo_jax.risk import to_json as risk_to_json

__all__ = [
    "AppliedPolicy",
    "RunState",
    "TamiyoState",
    "initial_state",
    "state_from_json",
    "state_to_json",
]

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
class RunState(Generic[PolicyState]):
    """What belongs to one training run.

    Attributes:
      policy_state: a policy's state of its own for this run, as the heuristic's counters; None
        where all runs share `TamiyoState.policy_state`, or before the first decision.
      risk: conservative mode, pause window, last validation loss, last brake. Its breakers are
        the controller's, and blank here.
      windows: open observation windows, oldest first.
      host_breaker: the host's breaker as last commanded.
      missing_features: optional features that were missing on the run's last step.
      truncated: what `overflow="truncate"` cut on its last step, by type or relation.
      steps: decisions made for it.
    """

    policy_state: PolicyState | None = None
    risk: RiskState = field(default_factory=RiskState)
    windows: tuple[Window, ...] = ()
    host_breaker: CircuitBreakerState = CircuitBreakerState.CLOSED
    missing_features: frozenset[str] = frozenset()
    truncated: tuple[tuple[str, int], ...] = ()
    steps: int = 0


@dataclass(frozen=True, slots=True)
class TamiyoState(Generic[PolicyState]):
    """The controller's state between two steps.

    It knows many training runs and is always about one, the current run: that of the last
    packet. `select_run` makes another run the current one. What belongs to the current run
    stands in fields of its own, what belongs to the others in `idle`; registries, breakers, the
    policies and an `ArrayPolicy`'s state (its normaliser) are shared by all runs.

    Attributes:
      policy_state: the policy's state: the normaliser, the heuristic's counters for the
        current run, or the pytree of arrays that a custom policy carries.
      registries: string-to-index maps that the encoder grows.
      risk: the current run's conservative mode, pause window, last validation loss and last
        brake; and the breakers, which are the controller's.
      windows: the current run's open observation windows, oldest first.
      policies: the live policy update, and before it the one that a rollback returns to;
        in front of them stand the parameters given to `Tamiyo.open`.
      host_breaker: the current run's host breaker as last commanded.
      missing_features: optional features that were missing on the current run's last step.
      truncated: what `overflow="truncate"` cut on its last step, by type or relation.
      layout: layout of the last step; None before the first.
      steps: decisions made, for all runs.
      failures: steps that raised, for all runs.
      run_id: `training_run_id` of the current run; empty before the first step.
      run_steps: decisions made for the current run.
      idle: the other runs by their id, the longest idle first.
      policy_per_run: the policy has a state for each run, so `policy_state` is the current run's.
      conservative_all: why operators have put all runs into conservative mode, those that
        begin later too; None where they have not.
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
    run_id: str = ""
    run_steps: int = 0
    idle: Mapping[str, RunState[PolicyState]] = field(
        default_factory=dict[str, RunState[PolicyState]]
    )
    policy_per_run: bool = False
    conservative_all: str | None = None

    @property
    def runs(self) -> Mapping[str, RunState[PolicyState]]:
        """What belongs to each run, by `training_run_id`; the current run comes last."""
        return {**self.idle, **({self.run_id: self.current} if self.run_id else {})}

    @property
    def current(self) -> RunState[PolicyState]:
        """What belongs to the current run."""
        blank = BreakerState()
        return RunState(
            policy_state=self.policy_state if self.policy_per_run else None,
            risk=replace(self.risk, inference=blank, metadata=blank),
            windows=self.windows,
            host_breaker=self.host_breaker,
            missing_features=self.missing_features,
            truncated=self.truncated,
            steps=self.run_steps,
        )


def initial_state(policy_state: PolicyState) -> TamiyoState[PolicyState]:
    """The state before the first step."""
    return TamiyoState(policy_state, Registries.empty(), RiskState())


def state_to_json(
    state: TamiyoState[PolicyState], *, registries: bool = True, idle: bool = True
) -> str:
    """The text form.

    Args:
      state: the state.
      registries: with the registries; a step's record carries what it added to them instead.
      idle: with the runs that are not the current one. A step does not change them, so its
        record leaves them out; `follow_runs` finds them again.
    """
    fields: dict[str, object] = {
        **_run_to_json(state),
        "policies": _POLICIES.dump_python(state.policies, mode="json"),
        "layout": _LAYOUT.dump_python(state.layout, mode="json"),
        "steps": state.steps,
        "failures": state.failures,
        "run": state.run_id,
        "run_steps": state.run_steps,
        "idle_runs": len(state.idle),
        "policy_per_run": state.policy_per_run,
        "conservative_all": state.conservative_all,
    }
    if registries:
        fields["registries"] = state.registries.to_plain()
    if idle and state.idle:
        fields["runs"] = [  # pairs, since sorted keys would lose their order
            (run_id, {**_run_to_json(run), "run_steps": run.steps})
            for run_id, run in state.idle.items()
        ]
    return json.dumps(fields, separators=(",", ":"), sort_keys=True)


def state_from_json(
    text: str,
    policy_state: PolicyState,
    *,
    registries: Registries | None = None,
) -> TamiyoState[PolicyState]:
    """Read a state back; one that was written before there were runs is of an unnamed run.

    Args:
      text: what `state_to_json` wrote.
      policy_state: any state of the same policy; gives structure, shapes and dtypes.
      registries: required where the text carries none.

    Raises:
      CheckpointMismatchError: the text is of another policy or not a state at all.
    """
    try:
        fields = json.loads(text)
        current = _run_from_json(fields, policy_state)
        maps = Registries.from_plain(fields["registries"]) if registries is None else registries
        idle = {name: _run_from_json(run, policy_state) for name, run in fields.get("runs", ())}
        return TamiyoState(
            policy_state=cast(PolicyState, current.policy_state),
            registries=maps,
            risk=current.risk,
            windows=current.windows,
            policies=_POLICIES.validate_python(fields["policies"]),
            host_breaker=current.host_breaker,
            missing_features=current.missing_features,
            truncated=current.truncated,
            layout=_LAYOUT.validate_python(fields["layout"]),
            steps=fields["steps"],
            failures=fields["failures"],
            run_id=fields.get("run", ""),
            run_steps=current.steps,
            idle=idle,
            policy_per_run=fields.get("policy_per_run", False),
            conservative_all=fields.get("conservative_all"),
        )
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        raise CheckpointMismatchError(
            f"this is not a controller state of this build: {error}", cause=str(error)
        ) from error


def _run_to_json(run: RunState[Any] | TamiyoState[Any]) -> dict[str, object]:
    """What belongs to a run, in the fields that both kinds of state have."""
    leaves = jax.tree.leaves(run.policy_state)
    return {
        "policy_state": None
        if run.policy_state is None
        else [_leaf_to_json(leaf) for leaf in leaves],
        "risk": risk_to_json(run.risk),
        "windows": _WINDOWS.dump_python(run.windows, mode="json"),
        "host_breaker": int(run.host_breaker),
        "missing_features": sorted(run.missing_features),
        "truncated": run.truncated,
    }


def _run_from_json(fields: Mapping[str, Any], like: PolicyState) -> RunState[PolicyState]:
    stored = fields["policy_state"]
    return RunState(
        policy_state=None if stored is None else _policy_state_from_json(stored, like),
        risk=risk_from_json(fields["risk"]),
        windows=_WINDOWS.validate_python(fields["windows"]),
        host_breaker=CircuitBreakerState(fields["host_breaker"]),
        missing_features=frozenset(fields["missing_features"]),
        truncated=tuple((name, count) for name, count in fields["truncated"]),
        steps=fields["run_steps"] if "run_steps" in fields else fields["steps"],
    )


def _policy_state_from_json(stored: Sequence[object], like: PolicyState) -> PolicyState:
    leaves, structure = jax.tree.flatten(like)
    if len(stored) != len(leaves):
        raise CheckpointMismatchError(
            f"the stored policy state has {len(stored)} leaves, this policy's has "
            f"{len(leaves)}; open the directory with the policy that wrote it",
            stored=len(stored),
            expected=len(leaves),
        )
    restored = [_leaf_from_json(*pair) for pair in zip(stored, leaves, strict=True)]
    return cast(PolicyState, jax.tree.unflatten(structure, restored))


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
