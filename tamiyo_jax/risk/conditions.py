"""Conditions: what a rule asks of the signals, as text for people and as a predicate.

A condition that holds answers with the attributes of its event, each measured value and
its limit as text; one that does not hold answers None.

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
from tamiyo_jax.risk.signals import Signals

__all__ = ["Condition", "all_of", "any_of", "compare", "diverges", "fact"]

Attributes = Mapping[str, str]

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "≥": operator.ge,
    "<": operator.lt,
    "≤": operator.le,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A predicate on signals.

    Attributes:
      describe: the condition in words, with the thresholds of a configuration.
      check: attributes of the event where the condition holds, else None.
    """

    describe: Callable[[RiskConfig], str]
    check: Callable[[Signals, RiskConfig], Attributes | None]


def compare(name: str, symbol: str, limit: str | float) -> Condition:
    """`name` is measured and compares as `symbol` says with `limit`.

    Args:
      name: what `Signals.measured` knows.
      symbol: one of ``> ≥ < ≤``.
      limit: a field of `RiskConfig`, or a number that is no setting.
    """
    holds = _COMPARISONS[symbol]

    def describe(config: RiskConfig) -> str:
        return f"{name} {symbol} {_limit(limit, config):g}"

    def check(signals: Signals, config: RiskConfig) -> Attributes | None:
        value, bound = signals.measured(name), _limit(limit, config)
        if value is None or not holds(value, bound):
            return None
        return {name: f"{value:g}", f"{name}_limit": f"{bound:g}"}

    return Condition(describe, check)


def diverges(name: str, limit: str) -> Condition:
    """`name` is above `limit`, or NaN: a measurement of the training's numerics."""
    above = compare(name, ">", limit)

    def check(signals: Signals, config: RiskConfig) -> Attributes | None:
        value = signals.measured(name)
        if value is not None and math.isnan(value):
            return {name: f"{value:g}", f"{name}_limit": f"{_limit(limit, config):g}"}
        return above.check(signals, config)

    return Condition(lambda config: f"{above.describe(config)} or NaN", check)


def fact(text: str, name: str, value: Callable[[Signals], object]) -> Condition:
    """Something that is the case, where `value` is neither None nor False."""

    def check(signals: Signals, config: RiskConfig) -> Attributes | None:
        found = value(signals)
        return None if found is None or found is False else {name: str(found).lower()}

    return Condition(lambda config: text, check)


def any_of(*parts: Condition) -> Condition:
    """At least one part holds; attributes are those of the parts that do."""

    def check(signals: Signals, config: RiskConfig) -> Attributes | None:
        held = [found for part in parts if (found := part.check(signals, config)) is not None]
        return _merge(held) if held else None

    return Condition(lambda config: " or ".join(part.describe(config) for part in parts), check)


def all_of(*parts: Condition) -> Condition:
    """Every part holds; attributes are those of all."""

    def check(signals: Signals, config: RiskConfig) -> Attributes | None:
        held = [found for part in parts if (found := part.check(signals, config)) is not None]
        return _merge(held) if len(held) == len(parts) else None

    return Condition(lambda config: " and ".join(part.describe(config) for part in parts), check)


def _limit(limit: str | float, config: RiskConfig) -> float:
    return getattr(config, limit) if isinstance(limit, str) else limit


def _merge(held: list[Attributes]) -> Attributes:
    return {name: text for attributes in held for name, text in attributes.items()}
