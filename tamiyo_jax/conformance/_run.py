"""Compare every golden file of a directory with this build."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tamiyo_jax.conformance._edges import compare_edges
from tamiyo_jax.conformance._leyline import compare_leyline
from tamiyo_jax.conformance._policy import compare_policy
from tamiyo_jax.conformance._risk import compare_risk

__all__ = ["TOLERANCE", "Line", "run_conformance"]

TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Line:
    """A comparison.

    Attributes:
      file: name of the golden file.
      compared: what was compared, in words.
      error: the largest absolute error, or the number of mismatches.
      holds: whether the error is within tolerance.
    """

    file: str
    compared: str
    error: float
    holds: bool


def run_conformance(directory: Path) -> Iterator[Line]:
    """Compare every ``policy_*.npz``, ``edges.json``, ``risk.json`` and ``leyline*`` file."""
    for pattern, compare in _COMPARISONS.items():
        for path in sorted(directory.glob(pattern)):
            yield from compare(path)


def _policy(path: Path) -> Iterator[Line]:
    errors = compare_policy(path)
    worst = max(errors, key=lambda name: errors[name])
    yield Line(
        path.name,
        f"{len(errors)} outputs, padded and unpadded (worst: {worst})",
        errors[worst],
        all(error <= TOLERANCE for error in errors.values()),
    )


def _edges(path: Path) -> Iterator[Line]:
    cases, edges, error = compare_edges(path)
    yield Line(path.name, f"{edges} edges of {cases} packets", error, error <= TOLERANCE)


def _risk(path: Path) -> Iterator[Line]:
    cases, mismatches = compare_risk(path)
    yield Line(path.name, f"{cases} verdicts", len(mismatches), not mismatches)


def _leyline(path: Path) -> Iterator[Line]:
    for result in compare_leyline(path.parent):
        compared = "decoded and encoded again, byte for byte"
        if result.verified is not None:
            compared += ", signature verified"
        yield Line(result.name, compared, result.bytes_differing, result.holds)


_COMPARISONS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "policy_*.npz": _policy,
    "edges.json": _edges,
    "risk.json": _risk,
    "leyline.json": _leyline,
}
