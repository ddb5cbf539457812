"""Golden files against this build: each module returns the largest error that it finds."""

from tamiyo_jax.conformance._run import run_conformance

__all__ = [
    "run_conformance",
]
