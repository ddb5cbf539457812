"""Compare golden files with this build; each module returns the largest error found."""

from tamiyo_jax.conformance._run import run_conformance

__all__ = [
    "run_conformance",
]
