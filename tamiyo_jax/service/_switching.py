"""Changing a controller between two steps: another policy, mode or state.

What decides next is made ready while steps go on. The switch itself is a record and an assignment
under the lock of the steps; only after that the policy that was replaced is closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.contracts import Event, PolicyUpdate, Secret, TelemetryLevel, decode_policy_update
from tamiyo_jax.controller import AppliedPolicy, Mode, TamiyoState, set_conservative
from tamiyo_jax.errors import ConfigurationError, PersistenceError, PolicyUpdateRejectedError
from tamiyo_jax.inference import (
    DeployedPolicy,
    PolicyChoice,
    check_parameters,
    make_trial_situation,
    require_parameters,
)
from tamiyo_jax.service._assembly import Parts
from tamiyo_jax.service._standing import Standing

__all__ = ["Switch", "parse_mode"]

_KEPT_UPDATES = 2  # the live one, and the one that a rollback returns to


class Switch:
    """Changes what a controller goes on from. The caller makes one call at a time.

    Args:
      standing: what is changed.
      config: the configuration.
      parts: of the controller.
      secrets: the current key, and the previous one, which only verifies.
      clock: nanoseconds since the epoch.
      lock: held while a step is made.
    """

    def __init__(
        self,
        standing: Standing,
        *,
        config: TamiyoConfig,
        parts: Parts,
        secrets: tuple[Secret, ...],
        clock: Callable[[], int],
        lock: threading.Lock,
    ) -> None:
        self._standing = standing
        self._config = config
        self._storage = parts.storage
        self._deployment = parts.deployment
        self._secrets = secrets
        self._clock = clock
        self._lock = lock

    def update_policy(self, update: PolicyUpdate | bytes) -> None:
        """See `Tamiyo.update_policy`."""
        try:
            if isinstance(update, bytes):
                update = decode_policy_update(update)
            self._apply_update(update)
        except PolicyUpdateRejectedError as error:
            attributes = {"reason": str(error.reason), "message": str(error)}
            event = Event("policy_update_rejected", TelemetryLevel.WARNING, attributes)
            self._standing.emit((event,))
            raise

    def rollback_policy(self) -> None:
        """See `Tamiyo.rollback_policy`."""
        *earlier, live = self._standing.state.policies or (None,)
        if live is None:
            raise PolicyUpdateRejectedError(
                "no policy update is in force; there is nothing to roll back",
                reason="no_update",
            )
        choice = self._deployment.choose_live(
            replace(self._standing.state, policies=tuple(earlier))
        )
        deployed = self._deploy(choice, self._standing.state)
        detail = f"{live.policy_id} → {choice.version}"
        with self._lock:
            after = replace(self._standing.state, policies=tuple(earlier))
            replaced = self._standing.swap(
                deployed,
                after,
                lambda: self._storage.append_operator("policy_rolled_back", detail, after),
            )
        _close(replaced)

    def set_mode(self, chosen: Mode) -> None:
        """See `Tamiyo.set_mode`."""
        before = self._standing.mode
        if chosen is before:
            return
        choice, deployed = self._standing.deployed.choice, None
        require_parameters(choice.name, choice.params, chosen)
        if chosen is Mode.GUARD:
            deployed = self._deployment.rest(choice)
        elif before is Mode.GUARD:
            choice = self._deployment.choose_live(self._standing.state, choice.params)
            deployed = self._deployment.warm(choice, self._standing.state, self._standing.last)
        change = {"from": before.value, "to": chosen.value}
        with self._lock:
            state = self._standing.state
            detail = " → ".join(change.values())
            replaced = self._standing.swap(
                deployed,
                state,
                lambda: self._storage.append_operator("mode_changed", detail, state),
            )
            self._standing.mode = chosen
        _close(replaced)
        self._standing.emit((Event("mode_changed", TelemetryLevel.INFO, change),))

    def set_conservative(self, on: bool, reason: str, run_id: str | None) -> None:
        """See `Tamiyo.set_conservative`; the caller holds the lock of the steps."""
        standing = self._standing
        before = standing.state
        selected = before if run_id is None else standing.select_run(before, run_id)
        after, events = set_conservative(selected, on, reason, everywhere=run_id is None)
        scope = "" if run_id is None else "run_"
        action = f"{scope}conservative_{'on' if on else 'off'}"
        standing.record(lambda: self._storage.append_operator(action, reason, after))
        standing.state = after
        standing.emit((*standing.find_forgotten_runs(before, after), *events))

    def restore(self, state: TamiyoState[Any], params: object) -> None:
        """See `Tamiyo.restore`."""
        deployed = None
        if params is not None:
            state = self._deployment.adopt(state, params)
        if params is not None or state.policies != self._standing.state.policies:
            deployed = self._deploy(self._deployment.choose_live(state, params), state)
        with self._lock:
            replaced = self._standing.swap(
                deployed, state, lambda: self._storage.append_restore(state, "restore")
            )
        _close(replaced)
        if params is not None and not state.policies:
            self._deployment = self._deployment.rebase(params)

    def _apply_update(self, update: PolicyUpdate) -> None:
        params = check_parameters(
            update,
            self._deployment.base.params,
            secrets=self._secrets,
            applied=self._storage.facts.policy_ids,
            now_ns=self._clock(),
            config=self._config,
        )
        state = self._standing.state
        situation = self._standing.last or make_trial_situation(self._config, state)
        deployed = self._deployment.deploy_update(update, params, state, situation)
        try:
            digest = self._storage.store_parameters(update.payload)
        except PersistenceError as error:
            deployed.close()
            self._standing.emit_persistence_failure(error)
            raise
        if self._standing.mode is Mode.GUARD:
            deployed.close()
            deployed = self._deployment.rest(deployed.choice)
        applied = AppliedPolicy(update.policy_id, digest, update.policy_version)
        with self._lock:
            policies = (*self._standing.state.policies, applied)[-_KEPT_UPDATES:]
            after = replace(self._standing.state, policies=policies)
            replaced = self._standing.swap(
                deployed,
                after,
                lambda: self._storage.append_policy_update(
                    applied.policy_id, applied.digest, applied.version, after
                ),
            )
        _close(replaced)
        attributes = {"policy_id": applied.policy_id, "version": applied.version}
        self._standing.emit((Event("policy_update_applied", TelemetryLevel.INFO, attributes),))

    def _deploy(self, choice: PolicyChoice, state: TamiyoState[Any]) -> DeployedPolicy:
        """Deploy a policy as the mode needs it: warm, or at rest."""
        if self._standing.mode is Mode.GUARD:
            return self._deployment.rest(choice)
        return self._deployment.warm(choice, state, self._standing.last)


def parse_mode(name: str) -> Mode:
    """The mode of a name.

    Raises:
      ConfigurationError: there is no such mode.
    """
    try:
        return Mode(name)
    except ValueError as error:
        choices = ", ".join(repr(choice.value) for choice in Mode)
        raise ConfigurationError(f"mode={name!r}; choose one of {choices}", value=name) from error


def _close(replaced: DeployedPolicy | None) -> None:
    """Close a policy that was replaced, if one was: after the lock of the steps is released."""
    if replaced is not None:
        replaced.close()
