"""What a run did and why, for people: from its journal alone."""

from tamiyo_jax.report._reading import RunReader, frame, read_run
from tamiyo_jax.report._run import Happening, Run

__all__ = ["Happening", "Run", "RunReader", "frame", "read_run"]
