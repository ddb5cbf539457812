"""Reading the outputs of jitted steps without making the device wait."""

from __future__ import annotations

from typing import Generic, TypeVar

import jax

__all__ = ["LateReader"]

T = TypeVar("T")


class LateReader(Generic[T]):
    """Reads the outputs of each step after the next step has been dispatched.

    The device therefore always has a step to work on while the host reads them::

        read = LateReader()
        for batch in batches:
            state, metrics = train_step(state, batch)  # returns before the step is done
            late = read(metrics)                       # of the step before

    Pass outputs of the step only, never parts of a state that is donated to the next step.
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
