"""Which kept states stay: the newest, and an older one out of reach of a slow divergence."""

from __future__ import annotations

__all__ = ["KEPT", "SPACING", "Retention"]

KEPT = 3
SPACING = 8
"""Saves that the oldest kept state lies back, at least, once there have been so many."""


class Retention:
    """Says which of the saved names to keep: the newest, the oldest, and one to become the oldest.

    When the middle one is `SPACING` saves old it takes the place of the oldest, so after
    `SPACING` saves the oldest is between `SPACING` and 2 × `SPACING` + 1 saves old.

    Args:
      names: what is kept already, oldest first.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self._saves = len(names)
        self._kept = list(zip(names, range(len(names)), strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """What is kept, oldest first."""
        return tuple(name for name, _ in self._kept)

    def add(self, name: str) -> str | None:
        """Count a save, and return the name that is to be dropped for it, if any."""
        self.remove(name)
        self._saves += 1
        self._kept.append((name, self._saves))
        if len(self._kept) <= KEPT:
            return None
        aged = self._saves - self._kept[1][1] >= SPACING
        return self._kept.pop(0 if aged else -2)[0]

    def remove(self, name: str) -> None:
        """Forget a name, if it is kept."""
        self._kept = [pair for pair in self._kept if pair[0] != name]

    def rewind(self, name: str) -> tuple[str, ...]:
        """Forget the names that are newer than `name`, and return them; none if it is not kept."""
        newer = self.names[self.names.index(name) + 1 :] if name in self.names else ()
        for each in newer:
            self.remove(each)
        return newer
