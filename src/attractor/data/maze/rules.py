"""The cells of a maze."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from attractor.data.puzzle import Grid, Grids
from attractor.errors import DataError

__all__ = ["ALPHABET", "Cell", "Grid", "Grids", "find_cell"]

ALPHABET = "# SGo"  # the character of each Cell, by its value


class Cell(IntEnum):
    WALL = 0
    FLOOR = 1
    START = 2
    GOAL = 3
    PATH = 4


def find_cell(grids: Grids, cell: Cell) -> NDArray[np.intp]:
    """Return the flat index (N,) of the one such cell of each maze. Raises DataError if a maze has none or several."""
    counts = (grids == cell).sum(axis=(1, 2))
    for index in np.flatnonzero(counts != 1):
        name = ALPHABET[cell]
        raise DataError(f"Maze {index} (from 0) has {counts[index]} cells {name}; give it exactly one.")
    return np.flatnonzero(grids == cell)
