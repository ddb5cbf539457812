"""Run the demonstration: a network grown by Tamiyo, the same never grown, and fully grown.

The grown run is checkpointed every few epochs: loop state, controller state and history in an
Orbax tree. A run that was killed continues from its last checkpoint, and its journal records it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tamiyo_jax.clock import steady_time_ns
from tamiyo_jax.config import DeadlineConfig, TamiyoConfig
from tamiyo_jax.contracts import AdaptationCommand, NonceLedger, Secret, Verifier
from tamiyo_jax.controller import TamiyoState, state_from_json, state_to_json
from tamiyo_jax.decision import Decision
from tamiyo_jax.demo._digits import digits_task
from tamiyo_jax.demo._results import DemoSummary, Row, Variant
from tamiyo_jax.demo._settings import DemoPolicy, RunSettings, load_settings, write_result
from tamiyo_jax.errors import ConfigurationError, PersistenceError
from tamiyo_jax.host import CommandApplier, HostCheckpoints, load_tree, save_tree
from tamiyo_jax.library import SqliteBlueprintLibrary
from tamiyo_jax.policy import GraphPolicy, HeuristicPolicy
from tamiyo_jax.replay import ReplayedDecision
from tamiyo_jax.service import Tamiyo
from tamiyo_jax.telemetry import JsonLinesSink
from tamiyo_jax.training import LoopState, Record, RunResult, Task, grow_all, init_loop, run

__all__ = [
    "CHECKPOINT_EPOCHS",
    "DemoSettings",
    "row_of",
    "run_demo",
]

CHECKPOINT_EPOCHS = 5
KEPT_CHECKPOINTS = 2
VERY_LONG_MS = 600_000.0
_NAMES = "epoch-" + 6 * "[0-9]"  # Orbax's unfinished directories have longer names


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Settings of a demonstration.

    Attributes:
      directory: the run directory.
      steps: number of optimiser steps of each network.
      seed: random seed of the data split, the parameters and the order of the data.
      policy: the policy that decides.
      resume: continue from the directory's last checkpoint.
      deterministic: packets carry no measured times, and deadlines are very long, so that equal
        runs make equal decisions.
    """

    directory: Path
    steps: int
    seed: int
    policy: DemoPolicy
    resume: bool
    deterministic: bool


Progress = Callable[[str, Row, int], None]


def run_demo(
    settings: DemoSettings, on_row: Progress, on_start: Callable[[Path, int], object]
) -> DemoSummary:
    """Run the three networks.

    Args:
      settings: what to run.
      on_row: called with the variant, each epoch, and the number of epochs.
      on_start: called with the directory and the number of epochs, once `settings` are checked.

    Raises:
      ConfigurationError: scikit-learn is missing, the directory already holds a run, or a run
        with other settings, or `steps` is too small.
      PersistenceError: there is nothing to resume.
    """
    run_settings = load_settings(
        settings.directory,
        resume=settings.resume,
        seed=settings.seed,
        policy=settings.policy,
        deterministic=settings.deterministic,
    )
    task = digits_task(settings.seed)
    _check_steps(settings.steps, task.steps_per_epoch, "one epoch")
    start = init_loop(task, settings.seed)
    rows, resumed_at, grown = _grow(task, start, settings, run_settings, on_row, on_start)
    write_result(
        settings.directory,
        run_settings,
        planned_steps=settings.steps,
        steps=settings.steps,
        test_accuracy=grown.test_accuracy,
    )
    fully = grow_all(task, start, task.candidates[0].blueprint_id)
    counted = Counter(row.action for row in rows)
    levels = Counter(level for row in rows for level in row.levels)
    return DemoSummary(
        grown=_variant("grown by Tamiyo", rows, grown),
        small=_compare("not grown", task, start, settings, on_row),
        full=_compare("grown from the start", task, fully, settings, on_row),
        actions=dict(counted.most_common()),
        levels=dict(levels.most_common()),
        decision_ms=tuple(row.decision_ms for row in rows if row.decision_ms is not None),
        resumed_at=resumed_at,
    )


def _compare(
    name: str, task: Task, state: LoopState, settings: DemoSettings, on_row: Progress
) -> Variant:
    rows: list[Row] = []

    def keep(record: Record, _: LoopState) -> None:
        rows.append(row_of(record))
        on_row(name, rows[-1], settings.steps // task.steps_per_epoch)

    result = run(task, None, steps=settings.steps, state=state, run_id=name, on_step=keep)
    return _variant(name, rows, result)


def _grow(
    task: Task,
    start: LoopState,
    settings: DemoSettings,
    run_settings: RunSettings,
    on_row: Progress,
    on_start: Callable[[Path, int], object],
) -> tuple[list[Row], int | None, RunResult]:
    root = settings.directory
    config = TamiyoConfig()
    if settings.deterministic:
        config = TamiyoConfig(
            deadlines=DeadlineConfig(inference_ms=VERY_LONG_MS, metadata_ms=VERY_LONG_MS)
        )
    secret = os.urandom(32)
    verifier = Verifier((Secret(secret),), NonceLedger(steady_time_ns()), config.security)
    keeper = HostCheckpoints(root / "host", task.host)
    rows, state, restored = _load_start(task, start, settings, config, keeper)
    write_result(root, run_settings, planned_steps=settings.steps)
    on_start(root, settings.steps // task.steps_per_epoch)
    library = SqliteBlueprintLibrary(root / "blueprints.db")
    for blueprint in (task.blueprint, *task.candidates):
        if library.get(blueprint.blueprint_id) is None:
            library.put(blueprint)
    with Tamiyo.open(
        config,
        directory=root / "tamiyo",
        library=library,
        policy=settings.policy,
        secret=secret,
        sinks=(JsonLinesSink(root / "telemetry.jsonl"),),
        state=restored,
    ) as tamiyo:

        def keep(record: Record, state: LoopState) -> None:
            rows.append(row_of(record))
            on_row("grown by Tamiyo", rows[-1], settings.steps // task.steps_per_epoch)
            if rows[-1].epoch % CHECKPOINT_EPOCHS == 0:
                newest = max(keeper.names(), default=None)
                _save(root, rows, state, newest, tamiyo.state, keeper)

        result = run(
            task,
            tamiyo,
            steps=settings.steps,
            state=state,
            run_id=f"digits-{settings.seed}",
            applier=CommandApplier(
                verifier,
                clock=steady_time_ns,
                optimizer_id=task.optimizer_id,
                checkpointer=keeper,
                host=task.host,
            ),
            deterministic=settings.deterministic,
            compile_ahead=False,  # a replay is the same run
            checkpoints=keeper,
            on_step=keep,
        )
    return rows, int(state.epochs) if settings.resume else None, result


def _check_steps(steps: int, least: int, what: str) -> None:
    if steps < least:
        raise ConfigurationError(
            f"steps is {steps}, and {what} takes {least}; give --steps {least} or more",
            field="steps",
            value=steps,
            limit=least,
        )


def _load_start(
    task: Task,
    start: LoopState,
    settings: DemoSettings,
    config: TamiyoConfig,
    keeper: HostCheckpoints,
) -> tuple[list[Row], LoopState, TamiyoState[Any] | None]:
    """Return the start of a new run, or load the last checkpoint of the directory."""
    home = settings.directory / "checkpoints"
    if not settings.resume:
        return [], start, None
    found = sorted(home.glob(_NAMES))
    if not found:
        raise PersistenceError(
            f"{home} holds no checkpoint; one is written every {CHECKPOINT_EPOCHS} epochs. "
            "Start afresh in another --directory",
            path=str(home),
        )
    like = {"loop": start, "tamiyo": str, "rows": str, "good": start.host, "good_name": str}
    tree = load_tree(found[-1], like, task.host)
    trained = int(tree["loop"].epochs) * task.steps_per_epoch
    _check_steps(settings.steps, trained, f"the checkpoint {found[-1]}")
    if tree["good_name"]:
        keeper.rewind(tree["good_name"], tree["good"])
    policy = (
        GraphPolicy(config.graph)
        if settings.policy == "graph"
        else HeuristicPolicy(config.heuristic, config.policy)
    )
    rows = [Row(**{**row, "levels": tuple(row["levels"])}) for row in json.loads(tree["rows"])]
    return rows, tree["loop"], state_from_json(tree["tamiyo"], policy.initial_state())


def _save(
    root: Path,
    rows: Sequence[Row],
    state: LoopState,
    good: str | None,
    tamiyo: TamiyoState[Any],
    keeper: HostCheckpoints,
) -> None:
    """Write everything that a resumed run needs, including the checkpoint for rollback."""
    home = root / "checkpoints"
    tree = {
        "loop": state,
        "tamiyo": state_to_json(tamiyo),
        "rows": json.dumps([asdict(row) for row in rows]),
        "good": state.host if good is None else keeper.restore(good, state.host),
        "good_name": good or "",
    }
    path = home / f"epoch-{rows[-1].epoch:06d}"
    shutil.rmtree(path, ignore_errors=True)  # left by the run that is being resumed
    save_tree(path, tree)
    for old in sorted(home.glob(_NAMES))[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def row_of(record: Record) -> Row:
    """Summarise a decision as a row of the table and the picture."""
    packet, decision = record.packet, record.decision
    action, reason, target, explanation, levels = "", "", "", "", ()
    if record.error is not None:
        action, reason, levels = type(record.error).__name__, str(record.error), ("CRITICAL",)
    elif isinstance(decision, Decision | ReplayedDecision):
        action, reason, target = decision.action, decision.reason, _target(decision.command)
        explanation = decision.explanation
        if isinstance(decision, Decision):
            levels = tuple(event.level.name for event in decision.events)
    return Row(
        epoch=packet.current_epoch,
        training_loss=packet.training_loss,
        validation_loss=packet.validation_loss,
        validation_accuracy=packet.validation_accuracy,
        live_parameters=record.live_parameters,
        action=action,
        reason=reason,
        target=target,
        levels=levels,
        decision_ms=record.decision_ms,
        explanation=explanation,
    )


def _target(command: AdaptationCommand | None) -> str:
    if command is None or command.target_seed_id is None:
        return ""
    blueprint = getattr(command.payload, "blueprint_id", None)
    return command.target_seed_id + (f" ← {blueprint}" if blueprint else "")


def _variant(name: str, rows: Sequence[Row], result: RunResult) -> Variant:
    return Variant(
        name=name,
        rows=tuple(rows),
        test_accuracy=result.test_accuracy,
        parameters_before=rows[0].live_parameters,
        parameters_after=result.parameters_after,
    )
