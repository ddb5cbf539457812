"""Conditions: what a rule requires of the signals, as a predicate and in words.

A condition that holds returns a `Finding`: the attributes of the rule's event, and the same
values and limits in words. A condition that does not hold returns None.

NaN. A measurement of the training's numerics (`loss_delta`, `loss_volatility`, `grad_var`,
`grad_conflict_rate`) that is NaN counts as above its limit: the quantity behind it has
diverged. Instruments (latencies, counters, utilisation) say NaN for "no reading", and a
reading that was not taken is no reason to stop a training run.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.risk._signals import Signals

__all__ = ["Condition", "Finding", "all_of", "any_of", "compare", "diverges", "fact"]

Attributes = Mapping[str, str]

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "≥": operator.ge,
    "<": operator.lt,
    "≤": operator.le,
}


# How an explanation names a measured signal; signals that are not listed keep their own name.
_PHRASES: Mapping[str, str] = {
    "policy_risk_score": "policy risk score {value}",
    "blueprint_risk": "blueprint risk {value}",
    "loss_delta": "validation loss rose by {value}",
    "loss_volatility": "loss volatility {value}",
    "grad_var": "gradient variance {value}",
    "grad_conflict_rate": "gradient conflict rate {value}",
    "optimizer_lr": "learning rate {value}",
    "hook_latency_ms": "hook took {value} ms",
    "step_latency_ms": "step took {value} ms",
    "kasmina.apply_ms": "applying the last command took {value} ms",
    "kasmina.finalize_ms": "finalising the last command took {value} ms",
    "kasmina.isolation.violations": "{value} isolation violations",
    "gpu_util_percent": "GPU {value} % busy",
    "gpu_mem_free_gb": "{value} GB of GPU memory free",
    "cpu_util_percent": "CPU {value} % busy",
    "coverage": "{value} of the expected features present",
    "step_refused": "{value} steps refused",
    "high_updates": "updates far above their usual size for {value} steps in a row",
    "ruinous_in_row": "{value} ruinous steps in a row",
    "sustained_rise": "log of the loss over its lowest level {value}",
    "sustained_z": "which is {value} times the spread of the loss",
    "high_gradients": "gradient norm high for {value} steps in a row",
    "steps_without_progress": "no progress for {value} steps",
    "latency_ratio": "step took {value} times its median",
    "loader_ratio": "wait for a batch {value} times the median step",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a condition that holds found.

    Attributes:
      attributes: the measured values and their limits, as text by name.
      explanation: the same as a clause, such as "validation loss rose by 0.31, limit 0.15".
    """

    attributes: Attributes
    explanation: str


@dataclass(frozen=True, slots=True)
class Condition:
    """A predicate on signals.

    Attributes:
      describe: the condition in words, with the thresholds of a configuration.
      check: what was found where the condition holds, else None.
    """

    describe: Callable[[RiskConfig], str]
    check: Callable[[Signals, RiskConfig], Finding | None]


def compare(name: str, symbol: str, limit: str | float) -> Condition:
    """`name` was measured, and ``name symbol limit`` is true.

    Args:
      name: a name that `Signals.measured` accepts.
      symbol: one of ``> ≥ < ≤``.
      limit: the name of a field of `RiskConfig`, or a fixed number.
    """
    holds = _COMPARISONS[symbol]

    def describe(config: RiskConfig) -> str:
        return f"{name} {symbol} {_limit(limit, config):g}"

    def check(signals: Signals, config: RiskConfig) -> Finding | None:
        value, bound = signals.read_number(name), _limit(limit, config)
        if value is None or not holds(value, bound):
            return None
        return _describe_excess(name, value, bound)

    return Condition(describe, check)


def diverges(name: str, limit: str) -> Condition:
    """`name` is above `limit`, or NaN: a measurement of the training's numerics."""
    above = compare(name, ">", limit)

    def check(signals: Signals, config: RiskConfig) -> Finding | None:
        value = signals.read_number(name)
        if value is not None and math.isnan(value):
            return _describe_excess(name, value, _limit(limit, config))
        return above.check(signals, config)

    return Condition(lambda config: f"{above.describe(config)} or NaN", check)


def fact(text: str, name: str, value: Callable[[Signals], object]) -> Condition:
    """`text` is true: `value` returns neither None nor False."""

    def check(signals: Signals, config: RiskConfig) -> Finding | None:
        found = value(signals)
        if found is None or found is False:
            return None
        return Finding({name: str(found).lower()}, _state_fact(text, found))

    return Condition(lambda config: text, check)


def any_of(*parts: Condition) -> Condition:
    """At least one part holds; the finding joins the parts that do."""

    def check(signals: Signals, config: RiskConfig) -> Finding | None:
        held = [found for part in parts if (found := part.check(signals, config)) is not None]
        return _merge(held) if held else None

    return Condition(lambda config: " or ".join(part.describe(config) for part in parts), check)


def all_of(*parts: Condition) -> Condition:
    """Every part holds; the finding joins them."""

    def check(signals: Signals, config: RiskConfig) -> Finding | None:
        held = [found for part in parts if (found := part.check(signals, config)) is not None]
        return _merge(held) if len(held) == len(parts) else None

    return Condition(lambda config: " and ".join(part.describe(config) for part in parts), check)


def _limit(limit: str | float, config: RiskConfig) -> float:
    return getattr(config, limit) if isinstance(limit, str) else limit


def _describe_excess(name: str, value: float, limit: float) -> Finding:
    phrase = _PHRASES.get(name, f"{name} {{value}}").format(value=f"{value:.4g}")
    return Finding(
        {name: f"{value:g}", f"{name}_limit": f"{limit:g}"}, f"{phrase}, limit {limit:g}"
    )


def _state_fact(text: str, found: object) -> str:
    """The text, with the value that was found unless the text already names it."""
    known = found is True or str(found).lower() in text.lower()
    return (
        text
        if known
        else f"{text} ({found:.4g})"
        if isinstance(found, float)
        else f"{text} ({found})"
    )


def _merge(held: list[Finding]) -> Finding:
    return Finding(
        {name: text for finding in held for name, text in finding.attributes.items()},
        " and ".join(finding.explanation for finding in held),
    )
