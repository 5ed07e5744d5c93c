"""Windows of mazes: small mazes to train on, made from parts of larger ones and of their paths.

A part of a shortest path is a shortest path between its ends, and the walls around a window can only remove paths. So
every window that contains a part of a maze's path is a solved maze, and no search is needed.
"""

import numpy as np
from numpy.typing import NDArray

from attractor.data.maze.paths import distances
from attractor.data.maze.rules import Cell, Grids, find_cell


def windows(questions: Grids, answers: Grids, size: int, rng: np.random.Generator) -> tuple[Grids, Grids]:
    """Return a random window (N, size, size) of each maze (N, H, W), with a border of walls, and its answer.

    The part of the path begins at a random cell, the new S, and is as long as fits into the window. ``size`` is at least 5
    and less than H and W.
    """
    path = np.where(np.isin(answers, (Cell.WALL, Cell.FLOOR)), np.uint8(Cell.WALL), answers)
    padded = np.pad(path, ((0, 0), (1, 1), (1, 1)))
    steps = distances(padded, find_cell(padded, Cell.START))[:, 1:-1, 1:-1]
    cropped = np.full((2, len(questions), size, size), Cell.WALL, np.uint8)
    for index, (question, order) in enumerate(zip(questions, steps, strict=True)):
        part, (top, left) = _part(order, size - 2, rng)
        inside = question[top : top + size - 2, left : left + size - 2]
        floor = np.where(inside == Cell.WALL, np.uint8(Cell.WALL), np.uint8(Cell.FLOOR))
        rows, columns = (part - (top, left) + 1).T
        for grid in cropped[:, index]:
            grid[1:-1, 1:-1] = floor
            grid[rows[0], columns[0]], grid[rows[-1], columns[-1]] = Cell.START, Cell.GOAL
        cropped[1, index, rows[1:-1], columns[1:-1]] = Cell.PATH
    return cropped[0], cropped[1]


def _part(order: NDArray[np.int32], inside: int, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return cells (K, 2) of a part of the path within ``inside`` rows and columns, and a random corner of such a window.

    ``order`` (H, W) has the steps from S on the path and is negative elsewhere.
    """
    cells = np.argwhere(order >= 0)
    cells = cells[np.argsort(order[tuple(cells.T)])]
    cells = cells[rng.integers(len(cells) - 1) :]
    lowest, highest = np.minimum.accumulate(cells), np.maximum.accumulate(cells)
    num = int(((highest - lowest) < inside).all(axis=1).sum())  # true up to the first cell that does not fit
    first = np.maximum(highest[num - 1] - inside + 1, 0)
    last = np.minimum(lowest[num - 1], np.array(order.shape) - inside)
    return cells[:num], rng.integers(first, last + 1)
