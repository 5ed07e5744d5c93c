"""The rules of a Sudoku with ``size`` digits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.data.puzzle import Grid, Grids
from attractor.errors import ConfigError, DataError

__all__ = ["BOXES", "Grid", "Grids", "require_grids", "require_size", "solves", "unit_name", "units"]

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows and columns of a box, by size


def require_size(size: int) -> None:
    """Raise a ConfigError for a size that is not supported."""
    if size not in BOXES:
        raise ConfigError(f"size={size!r}: give 4, 6 or 9, the sizes of Sudoku that are known.")


def require_grids(grids: NDArray[Any], name: str = "questions") -> int:
    """Return the size of grids (N, size, size). Raise a DataError for other shapes and values out of range."""
    shape = grids.shape
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in BOXES:
        raise DataError(f"{name} have the shape {shape}; give (N, size, size) with a size of 4, 6 or 9.")
    if grids.size and not (grids.min() >= 0 and grids.max() <= shape[1]):
        raise DataError(
            f"{name} of size {shape[1]} with values from {grids.min()} to {grids.max()}; give 0 to {shape[1]}."
        )
    return int(shape[1])


def units(size: int) -> NDArray[np.intp]:
    """Return the cells (3 * size, size) of every row, then every column, then every box, as flat indices."""
    height, width = BOXES[size]
    cells = np.arange(size * size)
    rows = cells.reshape(size, size)
    boxes = rows.reshape(size // height, height, size // width, width).swapaxes(1, 2).reshape(size, size)
    return np.concatenate([rows, rows.T, boxes])


def unit_name(index: int, size: int) -> str:
    """Return the name of a unit of :func:`units`, such as "row 1"."""
    kind, number = divmod(index, size)
    return f"{('row', 'column', 'box')[kind]} {number + 1}"


def solves(questions: Grids, answers: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each answer (N, size, size) whether it keeps the clues and has every digit once in each unit."""
    size = require_grids(questions)
    if answers.shape != questions.shape:
        raise DataError(
            f"questions and answers have the shapes {questions.shape} and {answers.shape}; give equal ones."
        )
    flat = answers.reshape(len(answers), -1)
    follows_rules = (np.sort(flat[:, units(size)], axis=2) == np.arange(1, size + 1)).all(axis=(1, 2))
    keeps_clues = ((questions == 0) | (questions == answers)).all(axis=(1, 2))
    return np.asarray(follows_rules & keeps_clues)
