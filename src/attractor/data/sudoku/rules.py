"""What a Sudoku of ``size`` digits is: its boxes, and whether grids keep its rules."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.errors import ConfigError, DataError

Grid = NDArray[np.uint8]  # (size, size), 0 for a blank, else a digit from 1
Grids = NDArray[np.uint8]  # (N, size, size)

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # rows and columns of a box, by size


def require_size(size: int) -> None:
    """Refuse a size without known boxes."""
    if size not in BOXES:
        raise ConfigError(f"size={size!r}: give 4, 6 or 9, the sizes of Sudoku that are known.")


def require_grids(grids: NDArray[Any], name: str = "questions") -> int:
    """Return the size of grids (N, size, size), or raise a DataError that says what they are instead."""
    shape = grids.shape
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] not in BOXES:
        raise DataError(f"{name} have the shape {shape}; give (N, size, size) with a size of 4, 6 or 9.")
    if grids.size and not (grids.min() >= 0 and grids.max() <= shape[1]):
        raise DataError(
            f"{name} of size {shape[1]} with values from {grids.min()} to {grids.max()}; give 0 to {shape[1]}."
        )
    return int(shape[1])


def units(size: int) -> NDArray[np.intp]:
    """The cells (3 * size, size) of every row, then every column, then every box, as flat indices."""
    height, width = BOXES[size]
    cells = np.arange(size * size)
    rows = cells.reshape(size, size)
    boxes = rows.reshape(size // height, height, size // width, width).swapaxes(1, 2).reshape(size, size)
    return np.concatenate([rows, rows.T, boxes])


def unit_name(index: int, size: int) -> str:
    """How a unit of ``units`` is called, counted from 1."""
    kind, number = divmod(index, size)
    return f"{('row', 'column', 'box')[kind]} {number + 1}"


def solves(questions: Grids, answers: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each answer (N, size, size) keeps its question's digits and has every digit once in all rows, columns and boxes."""
    size = require_grids(questions)
    if answers.shape != questions.shape:
        raise DataError(
            f"questions and answers have the shapes {questions.shape} and {answers.shape}; give equal ones."
        )
    flat = answers.reshape(len(answers), -1)
    whole = (np.sort(flat[:, units(size)], axis=2) == np.arange(1, size + 1)).all(axis=(1, 2))
    kept = ((questions == 0) | (questions == answers)).all(axis=(1, 2))
    return np.asarray(whole & kept)
