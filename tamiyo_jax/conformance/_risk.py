"""Compare golden risk cases with the gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.contracts import (
    Blueprint,
    CommandType,
    HandlingClass,
    HazardBand,
    SafetySheet,
    SeedOperation,
)
from tamiyo_jax.risk import Signals, Verdict, gate

__all__ = ["compare_risk"]


def compare_risk(path: Path) -> tuple[int, tuple[str, ...]]:
    """Evaluate every case of a golden ``risk.json``.

    Returns:
      The number of cases, and a line for each case with another answer.
    """
    cases = json.loads(path.read_text(encoding="utf-8"))
    mismatches = [
        f"case {index}: expected {case['expected']}, got {answer}"
        for index, case in enumerate(cases)
        if (answer := _answer(index, case)) != _sorted_events(case["expected"])
    ]
    return len(cases), tuple(mismatches)


def _answer(index: int, case: Mapping[str, Any]) -> dict[str, Any]:
    command_type, operation = _proposal(case["proposed"])
    signals = _signals(index, case)
    # The golden cases state "policy" where no rule has an effect.
    verdict = gate(command_type, operation, signals, RiskConfig(), reason="policy", explanation="")
    return _sorted_events(
        {
            "command_type": _name(verdict, operation),
            "reason": verdict.reason,
            "events": [[event.name, event.level.name] for event in verdict.events],
            "priority": verdict.priority.name,
            "enters_conservative": verdict.enters_conservative,
        }
    )


def _sorted_events(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {**answer, "events": sorted(answer["events"])}


def _proposal(name: str) -> tuple[CommandType | None, SeedOperation | None]:
    match name:
        case "WAIT":
            return None, None
        case "CULL":
            return CommandType.SEED, SeedOperation.CULL
        case "SEED":
            return CommandType.SEED, SeedOperation.GERMINATE
        case _:
            return CommandType[name], None


def _name(verdict: Verdict, operation: SeedOperation | None) -> str:
    if verdict.command_type is None:
        return "WAIT"
    culls = verdict.command_type is CommandType.SEED and operation is SeedOperation.CULL
    return "CULL" if culls else verdict.command_type.name


def _signals(index: int, case: Mapping[str, Any]) -> Signals:
    given = {
        name: case[name]
        for name in (
            "policy_risk_score",
            "loss_delta",
            "coverage",
            "conservative",
            "nonfinite_loss",
            "restorable_checkpoint",
            "device_type",
        )
        if name in case
    }
    return Signals(
        **given,
        metrics=case.get("training_metrics", {}),
        blueprint=_blueprint(index, case["blueprint"]) if "blueprint" in case else None,
        optimizer_id=f"optimizer of case {index}",
    )


def _blueprint(index: int, facts: Mapping[str, Any]) -> Blueprint:
    sheet = facts.get("safety")
    safety = None
    if sheet is not None:
        safety = SafetySheet(
            risk_score=sheet.get("risk_score", facts["risk"]),
            hazard_band=HazardBand(sheet["hazard_band"]),
            handling_class=HandlingClass(sheet["handling_class"]),
        )
    return Blueprint(
        blueprint_id=f"blueprint of case {index}",
        risk=facts["risk"],
        quarantine_only=facts.get("quarantine_only", False),
        safety=safety,
    )
