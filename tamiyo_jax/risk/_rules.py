"""The rules of the gate: one table.

A row that holds emits its event and may restrict the command. Rows of one band are about
one signal and exclude each other: only the most severe that holds takes part. Rows without
an effect only emit their event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.contracts import Event, HandlingClass, HazardBand, SafetySheet, TelemetryLevel
from tamiyo_jax.risk._conditions import Condition, all_of, any_of, compare, diverges, fact
from tamiyo_jax.risk._signals import Signals

__all__ = ["RULES", "Effect", "HeldRule", "Rule", "rules_markdown", "rules_that_hold"]


class Effect(IntEnum):
    """What a row does to the proposed command, from mild to harsh."""

    NONE = 0
    DOWNGRADE = 1
    PAUSE_SEED = 2
    PAUSE = 3
    ROLLBACK = 4


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table.

    Attributes:
      reason: id of the row, stated on the commands that it decides.
      band: the signal; of the rows with one band only the most severe that holds takes part.
      when: the condition.
      effect: what happens to the command.
      level: level of the event.
      event_name: the event, where it is not called like the reason.
      raises_priority: the message gets priority HIGH (a CRITICAL event gets CRITICAL anyway).
      star: enters conservative mode.
      detection: takes part only under this setting of `RiskConfig.detection`; ``any`` is always.
    """

    reason: str
    band: str
    when: Condition
    effect: Effect
    level: TelemetryLevel
    event_name: str = ""
    raises_priority: bool = False
    star: bool = False
    detection: Literal["any", "absolute", "relative"] = "any"

    @property
    def event(self) -> str:
        """Name of the event that the row emits."""
        return self.event_name or self.reason

    @property
    def severity(self) -> tuple[TelemetryLevel, Effect]:
        """Orders rows: by level, then by what they do to a command."""
        return self.level, self.effect


@dataclass(frozen=True, slots=True)
class HeldRule:
    """A row that holds.

    Attributes:
      rule: the row.
      event: its event, with the measured values and their limits.
      explanation: the same in words.
    """

    rule: Rule
    event: Event
    explanation: str


def _safety(read: Callable[[SafetySheet], StrEnum], *among: StrEnum) -> Callable[[Signals], object]:
    """Read the evaluated blueprint's safety sheet; None without one, or for other values."""

    def value(signals: Signals) -> object:
        sheet = None if signals.blueprint is None else signals.blueprint.safety
        return read(sheet) if sheet is not None and read(sheet) in among else None

    return value


def _hazard(band: HazardBand) -> Condition:
    text = f"the safety sheet's hazard is {band}"
    return fact(text, "hazard_band", _safety(lambda sheet: sheet.hazard_band, band))


def _other_than_cpu(signals: Signals) -> str | None:
    """The hardware that trains, unless it is a CPU: training on a CPU uses all of it."""
    device = signals.device_type or "unknown"
    return None if device.lower() == "cpu" else device


_CRITICAL, _WARNING, _INFO = TelemetryLevel.CRITICAL, TelemetryLevel.WARNING, TelemetryLevel.INFO
_NONE, _DOWNGRADE, _PAUSE = Effect.NONE, Effect.DOWNGRADE, Effect.PAUSE

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule("nonfinite_loss", "nonfinite loss",
         fact("a loss in the packet is NaN or infinite", "nonfinite", lambda s: s.nonfinite_loss),
         Effect.ROLLBACK, _CRITICAL, star=True),
    Rule("policy_risk_critical", "policy risk",
         compare("policy_risk_score", "≥", "policy_risk_critical"),
         _PAUSE, _CRITICAL, star=True),
    Rule("policy_risk_elevated", "policy risk",
         compare("policy_risk_score", "≥", "policy_risk_elevated"),
         _DOWNGRADE, _WARNING),
    Rule("policy_risk_signal", "policy risk is known",
         fact("a policy risk score is known", "policy_risk_score", lambda s: s.policy_risk_score),
         _NONE, _INFO),
    Rule("conservative_mode", "conservative mode",
         fact("conservative mode is on", "conservative", lambda s: s.conservative),
         _PAUSE, _WARNING, event_name="pause_triggered"),
    Rule("bp_quarantine", "blueprint risk",
         any_of(fact("the blueprint is quarantine-only", "quarantine_only",
                     lambda s: s.blueprint is not None and s.blueprint.quarantine_only),
                compare("blueprint_risk", "≥", "blueprint_quarantine")),
         _PAUSE, _CRITICAL, star=True),
    Rule("blueprint_risk", "blueprint risk",
         compare("blueprint_risk", "≥", "blueprint_risk"),
         _DOWNGRADE, _WARNING),
    Rule("bsds_handling_quarantine", "handling",
         fact("the safety sheet's handling is quarantine", "handling_class",
              _safety(lambda sheet: sheet.handling_class, HandlingClass.QUARANTINE)),
         _PAUSE, _CRITICAL, star=True),
    Rule("bsds_hazard_critical", "hazard",
         _hazard(HazardBand.CRITICAL),
         _PAUSE, _CRITICAL, star=True),
    Rule("bsds_hazard_high", "hazard",
         _hazard(HazardBand.HIGH),
         _DOWNGRADE, _WARNING),
    Rule("bsds_present", "safety sheet is known",
         fact("the blueprint has a safety sheet", "hazard_band",
              _safety(lambda sheet: sheet.hazard_band, *HazardBand)),
         _NONE, _INFO),
    Rule("loss_spike", "loss delta",
         diverges("loss_delta", "loss_spike"),
         _PAUSE, _WARNING, raises_priority=True, star=True, detection="absolute"),
    Rule("loss_warning", "loss delta",
         diverges("loss_delta", "loss_warning"),
         _DOWNGRADE, _WARNING, detection="absolute"),
    Rule("hook_budget", "hook latency",
         compare("hook_latency_ms", ">", "hook_budget_ms"),
         _PAUSE, _WARNING, raises_priority=True, detection="absolute"),
    Rule("step_latency_high", "step latency",
         compare("step_latency_ms", ">", "step_latency_ms"),
         _PAUSE, _WARNING, raises_priority=True, detection="absolute"),
    Rule("kasmina_apply_slow", "apply latency",
         compare("kasmina.apply_ms", ">", "apply_ms"),
         _DOWNGRADE, _WARNING),
    Rule("kasmina_finalize_slow", "finalise latency",
         compare("kasmina.finalize_ms", ">", "finalize_ms"),
         _DOWNGRADE, _WARNING),
    Rule("isolation_violation", "isolation",
         compare("kasmina.isolation.violations", ">", 0.0),
         _PAUSE, _WARNING, event_name="isolation_violations", raises_priority=True),
    Rule("loss_volatility_high", "loss volatility",
         diverges("loss_volatility", "loss_volatility"),
         _DOWNGRADE, _WARNING, detection="absolute"),
    Rule("grad_variance_high", "gradient variance",
         diverges("grad_var", "grad_variance"),
         _DOWNGRADE, _WARNING, detection="absolute"),
    Rule("grad_conflict_high", "gradient conflict",
         diverges("grad_conflict_rate", "grad_conflict"),
         _DOWNGRADE, _WARNING, detection="absolute"),
    Rule("optimizer_hint", "optimiser",
         all_of(compare("optimizer_lr", "≤", 0.0), compare("loss_delta", ">", "loss_warning")),
         _DOWNGRADE, _WARNING, detection="absolute"),
    Rule("device_pressure_high", "device pressure",
         all_of(compare("gpu_util_percent", "≥", "gpu_util_percent"),
                compare("gpu_mem_free_gb", "≤", "gpu_mem_free_gb")),
         Effect.PAUSE_SEED, _WARNING, raises_priority=True),
    Rule("cpu_pressure_high", "device pressure",
         all_of(compare("cpu_util_percent", "≥", "cpu_util_percent"),
                fact("the hardware that trains is not a CPU", "device_type", _other_than_cpu)),
         _DOWNGRADE, _WARNING, raises_priority=True),
    Rule("step_refused", "refusals",
         compare("step_refused", ">", 0.0),
         _NONE, _WARNING, detection="relative"),
    Rule("update_outlier", "refusals",
         compare("high_updates", "≥", "high_updates"),
         Effect.ROLLBACK, _CRITICAL, detection="relative"),
    Rule("refusals_exhausted", "refusals",
         compare("ruinous_in_row", "≥", "ruinous_in_row"),
         Effect.ROLLBACK, _CRITICAL, star=True, detection="relative"),
    Rule("divergence", "rise of the loss",
         all_of(compare("sustained_rise", ">", "divergence"),
                compare("sustained_z", ">", "sustained_z")),
         Effect.ROLLBACK, _CRITICAL, star=True, detection="relative"),
    Rule("sustained_rise", "rise of the loss",
         all_of(compare("sustained_rise", ">", "sustained_rise"),
                compare("sustained_z", ">", "sustained_z")),
         Effect.ROLLBACK, _WARNING, raises_priority=True, detection="relative"),
    Rule("gradient_rising", "gradient norm",
         compare("high_gradients", "≥", "high_gradients"),
         _DOWNGRADE, _WARNING, raises_priority=True, detection="relative"),
    Rule("plateau", "progress",
         compare("steps_without_progress", "≥", "plateau_steps"),
         _NONE, _INFO, detection="relative"),
    Rule("step_slow", "step time",
         compare("latency_ratio", ">", "latency_ratio"),
         _NONE, _WARNING, detection="relative"),
    Rule("loader_stall", "loader",
         compare("loader_ratio", ">", "loader_ratio"),
         _NONE, _WARNING, detection="relative"),
    Rule("degraded_inputs", "coverage",
         compare("coverage", "≤", "coverage_critical"),
         _PAUSE, _CRITICAL, star=True),
    Rule("degraded_inputs", "coverage",
         compare("coverage", "<", "coverage_warning"),
         _NONE, _WARNING),
)
# fmt: on


def rules_that_hold(
    signals: Signals, config: RiskConfig, rules: Iterable[Rule] = RULES
) -> tuple[HeldRule, ...]:
    """The rows that take part, in the table's order: of each band at most one."""
    held: list[HeldRule] = []
    worst: dict[str, HeldRule] = {}
    for rule in rules:
        if rule.detection not in ("any", config.detection):
            continue
        finding = rule.when.check(signals, config)
        if finding is None:
            continue
        event = Event(rule.event, rule.level, finding.attributes)
        row = HeldRule(rule, event, finding.explanation)
        held.append(row)
        if rule.band not in worst or rule.severity > worst[rule.band].rule.severity:
            worst[rule.band] = row
    return tuple(row for row in held if worst[row.rule.band] is row)


_EFFECT_TEXT = {
    Effect.NONE: "none",
    Effect.DOWNGRADE: "downgrade",
    Effect.PAUSE_SEED: "PAUSE for a SEED command",
    Effect.PAUSE: "PAUSE",
    Effect.ROLLBACK: "ROLLBACK to the restorable checkpoint; PAUSE where there is none",
}

_PAGE = """\
# Risk rules

The table that the gate works from, with the default thresholds; `tamiyo_jax.risk.rules_markdown`
makes this page. Rows on one signal exclude each other: only the most severe that holds takes part.
★ enters conservative mode. A row with a detection takes part only under that setting of
`risk.detection`.

| reason | signal | when | effect | event | level | priority | ★ | detection |
|---|---|---|---|---|---|---|---|---|
"""


def rules_markdown() -> str:
    """The table as a page of the documentation, with the default thresholds."""
    config = RiskConfig()
    return _PAGE + "".join(f"| {' | '.join(_cells(rule, config))} |\n" for rule in RULES)


def _cells(rule: Rule, config: RiskConfig) -> tuple[str, ...]:
    if rule.level is TelemetryLevel.CRITICAL:
        priority = "CRITICAL"
    else:
        priority = "HIGH" if rule.raises_priority else "NORMAL"
    return (
        f"`{rule.reason}`",
        rule.band,
        rule.when.describe(config),
        _EFFECT_TEXT[rule.effect],
        f"`{rule.event}`",
        rule.level.name,
        priority,
        "★" if rule.star else "",
        "" if rule.detection == "any" else rule.detection,
    )
