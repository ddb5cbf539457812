"""Checks of a policy update, before its parameters may decide."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import jax
import numpy as np

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import (
    Blueprint,
    BlueprintTier,
    LayerSpec,
    PolicyUpdate,
    Secret,
    SeedStage,
    SeedState,
    SystemStatePacket,
    verify_update,
)
from tamiyo_jax.controller import Answer, Mode, Situation, TamiyoState, conclude, observe
from tamiyo_jax.errors import (
    CheckpointMismatchError,
    PolicyUpdateRejectedError,
    SignatureError,
    TamiyoError,
)
from tamiyo_jax.graph import schema_digest
from tamiyo_jax.inference._inference import Runner
from tamiyo_jax.policy import arrays_from_bytes, fit_params

__all__ = ["check_parameters", "make_trial_situation", "try_parameters"]

Params = TypeVar("Params")


class Deployed(Protocol):
    """What a trial needs of a deployed policy."""

    @property
    def runner(self) -> Runner[Any]:
        """Where it runs."""
        ...

    def prepare(self, state: TamiyoState[Any], situation: Situation) -> bool:
        """See `Runner.prepare`."""
        ...

    def ask(self, state: TamiyoState[Any], situation: Situation, budget_ms: float) -> Answer[Any]:
        """See `Runner.run`."""
        ...


_HEADER_LIMIT = 1 << 20  # bytes of names, shapes and dtypes in front of the arrays
_NS_PER_S = 1_000_000_000


def check_parameters(
    update: PolicyUpdate,
    params: Params,
    *,
    secrets: Sequence[Secret],
    applied: Collection[str],
    now_ns: int,
    config: TamiyoConfig,
) -> Params:
    """Check an update and return its parameters, which are still to be tried.

    Args:
      update: the update.
      params: parameters of the live policy, or of the same shapes.
      secrets: the current key, and previous ones while they are being rotated out.
      applied: ids of the policies that were applied before.
      now_ns: nanoseconds since the epoch.
      config: the configuration.

    Raises:
      PolicyUpdateRejectedError: a check failed; `reason` names it.
    """
    try:
        verify_update(update, secrets)
    except SignatureError as error:
        raise _rejection(update, "bad_signature", str(error)) from error
    _check_fresh(update, now_ns, config)
    if update.policy_id in applied:
        _reject(update, "replayed", "this policy_id was applied before; every update has its own")
    if not update.policy_id or not update.policy_version:
        _reject(update, "version_mismatch", "policy_id and policy_version must not be empty")
    if update.schema_digest != schema_digest():
        _reject(
            update,
            "schema_mismatch",
            f"schema_digest is {update.schema_digest!r}, this build's is {schema_digest()}; learn "
            "the parameters with this version of tamiyo_jax",
        )
    return _read_parameters(update, params)


def _read_parameters(update: PolicyUpdate, params: Params) -> Params:
    """Read the payload as parameters of the same shapes."""
    if params is None:
        _reject(
            update,
            "shape_mismatch",
            "this controller was opened without parameters, so there are no shapes that an update "
            "could have; open it with params=…",
        )
    limit = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) + _HEADER_LIMIT
    if len(update.payload) > limit:
        _reject(update, "invalid_payload", f"{len(update.payload)} bytes, the limit is {limit}")
    try:
        arrays = arrays_from_bytes(update.payload)
    except CheckpointMismatchError as error:
        raise _rejection(update, "invalid_payload", str(error)) from error
    try:
        fitted = fit_params(arrays, params, "the payload")
    except CheckpointMismatchError as error:
        raise _rejection(update, "shape_mismatch", str(error)) from error
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            _reject(update, "nonfinite", f"{name} holds NaN or infinity")
    return fitted


def try_parameters(
    update: PolicyUpdate,
    deployed: Deployed,
    state: TamiyoState[Any],
    situation: Situation,
    config: TamiyoConfig,
) -> None:
    """Let new parameters decide once, under the deadline, and throw the decision away.

    Raises:
      PolicyUpdateRejectedError: `trial_failed`; what was raised is its cause.
    """
    try:
        deployed.runner.wait_ready()
        deployed.prepare(state, situation)
        answer = deployed.ask(state, situation, config.deadlines.inference_ms)
        conclude(
            config,
            state,
            situation,
            answer,
            mode=Mode.SHADOW,
            policy_version=update.policy_version,
            now_ns=0,
            command_id="trial",
            report_id="trial",
        )
    except TamiyoError as error:
        raise _rejection(update, "trial_failed", str(error)) from error


def make_trial_situation(config: TamiyoConfig, state: TamiyoState[Any]) -> Situation:
    """A small network with one dormant seed, for a trial before the first packet.

    Its names go no further than the trial.
    """
    blueprint = Blueprint(
        "trial",
        tier=BlueprintTier.SAFE,
        risk=0.0,
        layers=(LayerSpec("trial", "dense", 0),),
        chain=True,
    )
    packet = SystemStatePacket(
        packet_id="trial",
        training_run_id="trial",
        blueprint_id=blueprint.blueprint_id,
        validation_loss=1.0,
        training_loss=1.0,
        training_metrics={"loss": 1.0, "gradient_norm": 1.0},
        seeds=(SeedState("trial", SeedStage.DORMANT),),
    )
    lenient = config.graph.model_copy(update={"strict_features": False})
    return observe(
        config.model_copy(update={"graph": lenient}), state, packet, blueprint, (blueprint,)
    )


def _check_fresh(update: PolicyUpdate, now_ns: int, config: TamiyoConfig) -> None:
    security = config.security
    if update.issued_at_ns is None:
        _reject(update, "stale_update", "issued_at_ns is missing")
    age_s = (now_ns - update.issued_at_ns) / _NS_PER_S
    if not -security.max_future_s <= age_s <= security.update_freshness_s:
        _reject(
            update,
            "stale_update",
            f"it was issued {age_s:.1f} s ago; from {-security.max_future_s:g} to "
            f"{security.update_freshness_s:g} s are accepted",
        )


def _reject(update: PolicyUpdate, reason: str, why: str) -> NoReturn:
    raise _rejection(update, reason, why)


def _rejection(update: PolicyUpdate, reason: str, why: str) -> PolicyUpdateRejectedError:
    return PolicyUpdateRejectedError(
        f"policy update {update.policy_id!r} is refused ({reason}): {why}; the live policy stays",
        reason=reason,
        policy_id=update.policy_id,
    )
