"""Grids of colours in squares of cells, and their symmetries."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.uint8]  # colours (H, W) from 0 to 9, or cells (SIDE, SIDE) from 0 to 11
SIDE = 30
NUM_COLORS = 10
PAD = 0
EOS = 1
FIRST_COLOR = 2
IDENTITY = tuple(range(NUM_COLORS))
# By number: whether to reflect from left to right, and the quarter turns after that.
DIHEDRAL = ((False, 0), (False, 1), (False, 2), (False, 3), (True, 0), (True, 2), (True, 1), (True, 3))


def to_cells(grid: Grid, row: int = 0, column: int = 0) -> Grid:
    """Return a grid of colours as cells (SIDE, SIDE), with its corner at ``row`` and ``column``."""
    cells = np.full((SIDE, SIDE), PAD, np.uint8)
    bottom, right = row + grid.shape[0], column + grid.shape[1]
    cells[row:bottom, column:right] = grid + FIRST_COLOR
    if bottom < SIDE:
        cells[bottom, column:right] = EOS
    if right < SIDE:
        cells[row:bottom, right] = EOS
    return cells


def read_grid(cells: Grid) -> Grid:
    """Return the grid of colours whose corner is the first cell: the largest rectangle that holds colours only.

    An answer of a network may be any cells. Without a colour in the first cell, the grid is empty.
    """
    is_color = cells >= FIRST_COLOR
    widths = np.minimum.accumulate(np.logical_and.accumulate(is_color, axis=1).sum(axis=1))
    height = int((widths * np.arange(1, SIDE + 1)).argmax()) + 1
    return cells[:height, : widths[height - 1]] - FIRST_COLOR


@dataclass(frozen=True)
class Transform:
    """A symmetry of ARC: first a permutation of the colours, then a rotation or reflection.

    ``colors[c]`` is the new colour of ``c``. ``dihedral`` has the numbers of the published code: 0 to 3 quarter turns, 4 a
    reflection from left to right, 5 from top to bottom, 6 and 7 at the two diagonals.
    """

    dihedral: int = 0
    colors: tuple[int, ...] = IDENTITY

    def apply(self, grid: Grid) -> Grid:
        """Return the transformed grid of colours."""
        is_mirrored, turns = DIHEDRAL[self.dihedral]
        grid = np.asarray(self.colors, np.uint8)[grid]
        return np.rot90(grid[:, ::-1] if is_mirrored else grid, turns)

    def undo(self, grid: Grid) -> Grid:
        """Return the grid of which ``grid`` is the transformed one."""
        is_mirrored, turns = DIHEDRAL[self.dihedral]
        grid = np.rot90(np.argsort(self.colors).astype(np.uint8)[grid], -turns)
        return grid[:, ::-1] if is_mirrored else grid


def random_transform(rng: np.random.Generator) -> Transform:
    """Draw a symmetry. Colour 0, the background of most tasks, stays."""
    return Transform(int(rng.integers(8)), (0, *(int(c) for c in 1 + rng.permutation(NUM_COLORS - 1))))
