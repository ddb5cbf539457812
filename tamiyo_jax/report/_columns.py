"""A table that grows row by row, whose columns come and go."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from sys import intern

import numpy as np

__all__ = ["Columns"]

Cell = float | int | bool | str


class Columns:
    """Columns of equal length, made from rows that need not name all of them.

    A column holds floats, integers, booleans or text, as its first cell does. Rows that do not
    name it have NaN, 0, False or an empty string there.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._cells: dict[str, array[float] | array[int] | list[str]] = {}
        self._kinds: dict[str, type] = {}

    def __len__(self) -> int:
        return self._rows

    def append(self, row: Mapping[str, Cell]) -> None:
        """Add a row."""
        for name, cell in row.items():
            column = self._cells.get(name)
            if column is None:
                column = self._begin(name, type(cell))
            if len(column) != self._rows:
                self._fill(name, column)
            column.append(intern(cell) if isinstance(cell, str) else cell)  # type: ignore[arg-type]
        self._rows += 1

    def truncate(self, rows: int) -> None:
        """Forget all rows from number `rows` on."""
        for column in self._cells.values():
            del column[rows:]
        self._rows = min(rows, self._rows)

    def last(self, name: str) -> Cell | None:
        """The newest cell of a column; None before the first row."""
        column = self._cells.get(name)
        return column[-1] if column and len(column) == self._rows else None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the table: an array [rows] for each column; text as objects."""
        for name, column in self._cells.items():
            self._fill(name, column)
        return {name: self._array(name) for name in self._cells}

    def _begin(self, name: str, kind: type) -> array[float] | array[int] | list[str]:
        made = [] if kind is str else array("d" if kind is float else "q")
        self._cells[name], self._kinds[name] = made, kind
        return made

    def _fill(self, name: str, column: array[float] | array[int] | list[str]) -> None:
        missing = self._rows - len(column)
        if missing > 0:
            nothing = {float: float("nan"), str: ""}.get(self._kinds[name], 0)
            column.extend([nothing] * missing)  # type: ignore[list-item]

    def _array(self, name: str) -> np.ndarray:
        kind = self._kinds[name]
        if kind is str:
            return np.array(self._cells[name], dtype=object)
        return np.array(
            self._cells[name], dtype={float: np.float64, bool: np.bool_}.get(kind, np.int64)
        )
