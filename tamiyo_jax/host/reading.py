"""Reading what a jitted step puts out, without holding up the device."""

from __future__ import annotations

from typing import Generic, TypeVar

import jax

__all__ = ["LateReader"]

T = TypeVar("T")


class LateReader(Generic[T]):
    """Reads the outputs of steps, each when the next step is already on its way.

    The device then always has a step to work on while the host reads, decides and reports::

        read = LateReader()
        for batch in batches:
            state, metrics = train_step(state, batch)  # returns before the step is done
            late = read(metrics)                       # of the step before

    Give it outputs of the step alone, never parts of a state that the next step is donated.
    """

    def __init__(self) -> None:
        self._pending: T | None = None

    def __call__(self, outputs: T) -> T | None:
        """Start to copy a step's outputs, and return those of the step before.

        Args:
          outputs: a pytree of arrays on a device.

        Returns:
          The last call's outputs as NumPy arrays; None from the first call. Waits for their
          step if it is not done, never for the step that was just dispatched.
        """
        late, self._pending = self._pending, outputs
        for array in jax.tree.leaves(outputs):
            array.copy_to_host_async()
        return None if late is None else jax.device_get(late)
