"""From the name of a policy to the policy."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from tamiyo_jax.config import TamiyoConfig
from tamiyo_jax.controller import Mode
from tamiyo_jax.errors import ConfigurationError, MissingParametersError
from tamiyo_jax.inference._shipped import SHIPPED_VERSION, fits_shipped, shipped_params
from tamiyo_jax.policy import GraphPolicy, HeuristicPolicy, Policy

__all__ = ["PolicyChoice", "choose_policy", "require_parameters"]


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy, its parameters, and what annotations and reports call it.

    Attributes:
      name: what `choose_policy` was asked for.
      policy: the policy.
      params: its parameters; None for the graph policy on guard that was given none.
      version: what annotations and reports call it.
    """

    name: str
    policy: Policy[Any, Any]
    params: Any
    version: str


def choose_policy(config: TamiyoConfig, name: str, params: object, mode: Mode) -> PolicyChoice:
    """Resolve ``"graph"``, ``"heuristic"`` or ``"package.module:factory"``.

    The graph policy without parameters is the trained one that the package ships; on guard, where
    no policy decides, it has none. The factory is called with the `TamiyoConfig` and returns a
    `Policy`.

    Raises:
      MissingParametersError: the graph policy is to decide, has no parameters, and its
        configuration is not one that the shipped parameters fit.
      ConfigurationError: the factory cannot be imported or does not make a policy.
    """
    if name == "graph":
        if params is None and mode is not Mode.GUARD and fits_shipped(config.policy):
            return PolicyChoice(name, GraphPolicy(config.graph), shipped_params(), SHIPPED_VERSION)
        require_parameters(name, params, mode)
        return PolicyChoice(name, GraphPolicy(config.graph), params, config.policy.version)
    if name == "heuristic":
        policy = HeuristicPolicy(config.heuristic, config.policy)
        return PolicyChoice(name, policy, {}, "heuristic-1")
    module, _, factory = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"policy {name!r} is neither 'graph' nor 'heuristic' nor an importable "
            f"'package.module:factory': {error}",
            policy=name,
        ) from error
    policy = make(config)
    if not (hasattr(policy, "decide") and hasattr(policy, "initial_state")):
        raise ConfigurationError(
            f"{name} returned {type(policy).__name__}, which has no decide and initial_state",
            policy=name,
        )
    return PolicyChoice(name, policy, params, name)


def require_parameters(name: str, params: object, mode: Mode) -> None:
    """Refuse a mode in which the policy decides, if it cannot; on guard it is not asked.

    Raises:
      MissingParametersError: the graph policy is to decide, and has no parameters.
    """
    if name == "graph" and params is None and mode is not Mode.GUARD:
        raise MissingParametersError(
            "policy='graph' has no parameters: it was opened on guard without, or "
            "policy.blending_methods are not as many as the three of the shipped ones. Open it "
            "with params, inference.shipped_params() or untrained ones of "
            "policy.init_params(config.policy, key); policy='heuristic' needs none",
            mode=mode.value,
        )
