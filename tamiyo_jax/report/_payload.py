"""What the page of a run draws, as plain lists: every series thinned, every decision kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tamiyo_jax.config import RiskConfig
from tamiyo_jax.contracts import SeedStage
from tamiyo_jax.report._run import Run
from tamiyo_jax.report._signals import divide_by_limits
from tamiyo_jax.report._summary import list_stages, read_parameters
from tamiyo_jax.report._thin import choose_rows, reduce_maxima, split_rows

__all__ = ["MAX_LAYERS", "build_payload", "choose_x"]

MAX_LAYERS = 200
_BUCKETS, _CELLS = 1500, 600
_MAX_SEEDS = 32
_DIGITS = 5
_LAYER, _GRADIENT = "metrics/layer/", "/gradient_norm"
Data = dict[str, Any]


def build_payload(run: Run, risk: RiskConfig) -> Data:
    """Build the figures of a run, for the page's script.

    Args:
      run: what was read.
      risk: the limits to draw.
    """
    x, unit = choose_x(run)
    frame = run.frame
    losses = {"training": frame["training_loss"], "validation": frame["validation_loss"]}
    latencies = {
        "policy": frame["inference_ms"],
        "packet to decision": frame["decision_ms"],
        "hook": frame.get("metrics/hook_latency_ms"),
    }
    parameters = read_parameters(run)
    contributions = {
        seed_id: frame.get(f"seeds/{seed_id}/contribution") for seed_id in run.seed_ids
    }
    lines = {
        "losses": losses,
        "accuracy": {"validation accuracy": frame["validation_accuracy"]},
        "parameters": {"live parameters": parameters},
        "contributions": dict(list(contributions.items())[:_MAX_SEEDS]),
        "signals": divide_by_limits(run, risk),
        "latency": latencies,
    }
    return {
        "name": run.directory.name or str(run.directory),
        "unit": unit,
        "extent": _plain(x[[0, -1]] if len(x) else [0, 1]),
        "lines": {name: made for name, some in lines.items() if (made := _lines(x, some))},
        "lanes": _lanes(run, x),
        "heat": _heat(run, x),
        "broken": _find_broken_spans(run, x),
        "decisions": _decisions(run, x),
    }


def choose_x(run: Run) -> tuple[np.ndarray, str]:
    """f64 [rows], ascending: the optimiser's steps, or decisions where steps went back."""
    steps = run.frame["step"]
    if len(steps) and steps[-1] > steps[0] and (np.diff(steps) >= 0).all():
        return steps.astype(np.float64), "step"
    return np.arange(1, len(steps) + 1, dtype=np.float64), "decision"


def _lines(x: np.ndarray, some: Mapping[str, np.ndarray | None]) -> Data | None:
    """Series over a common x; None where nothing was measured."""
    known = {k: v for k, v in some.items() if v is not None and np.isfinite(v).any()}
    if not known:
        return None
    rows = choose_rows(list(known.values()), _BUCKETS)
    return {
        "x": _plain(x[rows]),
        "labels": list(known),
        "series": [_plain(values[rows]) for values in known.values()],
    }


def _lanes(run: Run, x: np.ndarray) -> Data | None:
    """Stages of the seeds as spans, and α over x."""
    seeds = run.seed_ids[:_MAX_SEEDS]
    if not seeds:
        return None
    spans = [
        [seeds.index(stay.seed_id), int(stay.stage), *_plain(x[[stay.first, stay.last]])]
        for stay in list_stages(run)
        if stay.seed_id in seeds
    ]
    nothing = np.full(len(x), np.nan)
    alphas = [run.frame.get(f"seeds/{seed_id}/alpha", nothing) for seed_id in seeds]
    rows = choose_rows(alphas, _BUCKETS)
    return {
        "seeds": list(seeds),
        "hidden": len(run.seed_ids) - len(seeds),
        "stages": [stage.name for stage in SeedStage],
        "spans": spans,
        "x": _plain(x[rows]),
        "alphas": [_plain(alpha[rows]) for alpha in alphas],
    }


def _heat(run: Run, x: np.ndarray) -> Data | None:
    """The largest gradient norm of each layer and run of rows; -1 where a norm was not finite."""
    names = [n for n in run.frame if n.startswith(_LAYER) and n.endswith(_GRADIENT)]
    if not names:
        return None
    norms = np.stack([run.frame[name] for name in names[:MAX_LAYERS]])
    starts = split_rows(len(x), _CELLS)
    broken = np.maximum.reduceat(_find_broken_layers(run, norms), starts, axis=-1)
    cells = np.where(broken, -1.0, reduce_maxima(np.where(np.isinf(norms), np.nan, norms), starts))
    return {
        "layers": [n.removeprefix(_LAYER).removesuffix(_GRADIENT) for n in names[:MAX_LAYERS]],
        "hidden": max(len(names) - MAX_LAYERS, 0),
        "x": _plain(x[starts]),
        "end": float(x[-1]),
        "cells": [_plain(row) for row in cells],
    }


def _find_broken_layers(run: Run, norms: np.ndarray) -> np.ndarray:
    """Boolean [layers, rows]: not finite, though the packet brought layers."""
    measured = np.isfinite(run.frame.get("metrics/gradient_norm", np.zeros(norms.shape[1])))
    broken_whole = run.frame["has_packet"] & ~measured
    return np.isinf(norms) | (np.isnan(norms) & broken_whole)


def _find_broken_spans(run: Run, x: np.ndarray) -> list[list[float]]:
    """Spans of x in which a loss was not finite."""
    edges = np.diff((run.frame["nonfinite"] != "").astype(np.int8), prepend=0, append=0)
    begins, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    return [[float(x[a]), float(x[b])] for a, b in zip(begins, ends, strict=True)]


def _decisions(run: Run, x: np.ndarray) -> Data:
    """All decisions that did something, and all failures; text by number into a list.

    Every column is stored as differences, see `_differences`.
    """
    rows = np.flatnonzero(run.acted | run.failed)
    frame = run.frame
    texts = _Texts()
    actions = [action or "FAILED" for action in frame["action"][rows]]
    columns = {
        "x": x[rows],
        "time": frame["time_ns"][rows] // 1_000_000,
        "action": texts.of(actions),
        "command": texts.of(frame["command"][rows]),
        "reason": texts.of(_short(frame["reason"][rows], frame["action"][rows])),
        "why": texts.of(frame["explanation"][rows]),
        "mode": texts.of(frame["mode"][rows]),
    }
    return {name: _differences(column) for name, column in columns.items()} | {"texts": texts.all}


def _differences(column: np.ndarray | Sequence[int]) -> list[int]:
    """Whole numbers as the difference of each from its predecessor: those compress better."""
    return np.diff(np.asarray(column, np.int64), prepend=0).tolist()


def _short(reasons: Iterable[str], actions: Iterable[str]) -> list[str]:
    """The name of the error, where a step failed; the rest of its message is the why."""
    return [
        reason if action else reason.partition(":")[0]
        for reason, action in zip(reasons, actions, strict=True)
    ]


class _Texts:
    """Texts that occur often, by their number in a list."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, texts: Iterable[str]) -> list[int]:
        return [self._numbers.setdefault(text, len(self._numbers)) for text in texts]

    @property
    def all(self) -> list[str]:
        return list(self._numbers)


def _plain(values: np.ndarray | Sequence[float]) -> list[float | None]:
    """Numbers as JSON can hold them, in few digits; None where they are not finite."""
    return [
        None
        if not np.isfinite(value)
        else int(value)
        if value == int(value)
        else float(f"{value:.{_DIGITS}g}")
        for value in np.asarray(values, np.float64).tolist()
    ]
