"""Sudokus as text: drawings with boxes, lines, drawings and csv files, and a verdict about an answer."""

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.data.puzzle import LocatedGrid, Verdict
from attractor.data.sudoku.rules import BOXES, Grid, Grids, require_grids, solves, unit_name, units
from attractor.data.table import Rows, read_rows
from attractor.errors import DataError

# Characters that draw boxes and mean nothing, those of Unicode too.
_BOX_LINES = str.maketrans("", "", "|+:! \t\r" + "".join(map(chr, range(0x2500, 0x2580))))
_SIZES = [*BOXES, *(size**2 for size in BOXES)]  # the cells of a row and of a grid
_VALUES = dict.fromkeys(".-_*", 0) | {str(digit): digit for digit in range(10)}


def render(grid: Grid) -> str:
    """Return a drawing of a grid (size, size): lines between the boxes, '.' for blanks, no final newline."""
    size = require_grids(grid[None], "a grid")
    height, width = BOXES[size]
    rule = "+".join("-" * (2 * width + (1 if 0 < stack < size // width - 1 else 0)) for stack in range(size // width))
    lines = []
    for row, digits in enumerate(grid.tolist()):
        if row and row % height == 0:
            lines.append(rule)
        characters = [str(digit) if digit else "." for digit in digits]
        lines.append(" | ".join(" ".join(characters[i : i + width]) for i in range(0, size, width)))
    return "\n".join(lines)


def parse(text: str, *, source: str = "<text>") -> Grid:
    """Return the one grid (size, size) in ``text``: see :func:`parse_all`."""
    grids = parse_all(text, source=source)
    if len(grids) > 1:
        raise DataError(f"{source}: holds {len(grids)} puzzles; give one at a time.")
    return grids[0].grid


def parse_all(text: str, *, source: str = "<text>") -> list[LocatedGrid]:
    """Return all grids of a text, of any sizes, each with the line where it begins.

    A grid is one line of 16, 36 or 81 characters, or a drawing. Digits are clues; '.', '0', '_' and '*' are blanks, and
    '-' where a line has the right number of cells with it; '|', '+', spaces and other '-' mean nothing. Lines that begin
    with '#' or '[' are comments and headings (files of the formats sdk, sdm and ss). :func:`check` says whether a grid
    can be solved.

    Raises
    ------
    DataError
        For malformed text. The message names ``source`` and line (from 1).
    """
    grids: list[LocatedGrid] = []
    rows: list[str] = []  # of a drawing that is not complete yet
    first = number = 0
    for number, line in enumerate(text.splitlines(), start=1):
        cells = "" if line.startswith(("#", "[")) else _cells(line, len(rows[0]) if rows else 0)
        if not cells:
            if rows and not line.strip():
                break_at = f"{source}, line {number}: a blank line after {len(rows)} rows of {len(rows[0])}"
                raise DataError(f"{break_at}; give a drawing as many rows as columns.")
            continue
        for character in cells:
            if character not in _VALUES:
                raise DataError(
                    f"{source}, line {number}: unexpected {character!r}; write digits, and '.' or '0' for blanks."
                )
        if not rows and len(cells) in [size**2 for size in BOXES]:
            grids.append(_grid(cells, source, number))
            continue
        first = first if rows else number
        if len(cells) not in BOXES or (rows and len(cells) != len(rows[0])):
            known = f"{len(rows[0])} as in line {first}" if rows else "4, 6 or 9 for a row, or 16, 36 or 81 for a grid"
            raise DataError(f"{source}, line {number}: has {len(cells)} cells; give {known}.")
        rows.append(cells)
        if len(rows) == len(cells):
            grids.append(_grid("".join(rows), source, first))
            rows = []
    if rows:
        raise DataError(f"{source}, line {number}: ends after {len(rows)} rows of {len(rows[0])}; draw all of them.")
    if not grids:
        raise DataError(f"{source}: there is no puzzle; write its digits in reading order, '.' for blanks.")
    return grids


def tables(source: str | os.PathLike[str], split: str, *, answers: bool = True) -> Iterator[tuple[Rows, Grids, Grids]]:
    """Yield rows of a csv in the format of Sudoku-Extreme with questions and answers (N, size, size), both checked."""
    for rows in read_rows(source, split, num_cells=[size**2 for size in BOXES], values=_VALUES, answers=answers):
        size = int(rows.questions.shape[1] ** 0.5)
        questions, solutions = (grids.reshape(-1, size, size) for grids in (rows.questions, rows.answers))
        for name, grids in (("question", questions), ("answer", solutions)):
            for row in np.flatnonzero((grids > size).any(axis=(1, 2))):
                raise rows.error(row, f"the {name} has a digit above {size}; correct it.")
        for row in np.flatnonzero(~solves(questions, solutions)) if answers else ():
            raise rows.error(row, f"the answer is {verdict(questions[row], solutions[row])}; correct it.")
        yield rows, questions, solutions


def verdict(question: Grid, answer: Grid) -> Verdict:
    """Check an ``answer`` (size, size). The message begins with "verified" or "wrong" and names the first mistake.

    ``cells`` are changed givens, blanks, and digits that occur twice in a unit.
    """
    size = require_grids(question[None], "a question")
    if answer.shape != question.shape:
        mistakes, wrong = [f"has the shape {answer.shape} and the puzzle {question.shape}"], np.zeros((0, 2))
    else:
        mistakes, wrong = _find_mistakes(question, answer, size)
    message = f"wrong: the answer {mistakes[0]}" if mistakes else "verified: solved"
    cells = tuple((int(row), int(column)) for row, column in wrong)
    return Verdict(is_correct=not mistakes, message=message, cells=cells)


def _find_mistakes(question: Grid, answer: Grid, size: int) -> tuple[list[str], NDArray[Any]]:
    """Return a sentence for each mistake, and the (row, column) of all wrong cells, (K, 2)."""
    changed, blank = (question > 0) & (answer != question), (answer < 1) | (answer > size)
    mistakes = [f"changes the given {question[r, c]} at row {r + 1}, column {c + 1}" for r, c in np.argwhere(changed)]
    mistakes += [f"leaves row {r + 1}, column {c + 1} blank" for r, c in np.argwhere(blank)]
    wrong = changed | blank
    for index, cells in enumerate(units(size)):
        digits, counts = np.unique(answer.reshape(-1)[cells], return_counts=True)
        for digit in digits[(counts > 1) & (digits > 0) & (digits <= size)]:
            clash = cells[answer.reshape(-1)[cells] == digit]
            wrong.reshape(-1)[clash] = True
            places = " and ".join(f"row {cell // size + 1}, column {cell % size + 1}" for cell in clash)
            times = "twice" if len(clash) == 2 else f"{len(clash)} times"
            mistakes.append(f"has the digit {digit} {times} in {unit_name(index, size)}: at {places}")
    return mistakes, np.argwhere(wrong)


def _cells(line: str, width: int) -> str:
    """Return the cells of a line. A '-' is a blank where this gives a row of ``width``, or of any size if it is 0.

    A line between boxes has no digits, and no spaces between its dashes; some begin and end with a '*'.
    """
    with_dashes = line.translate(_BOX_LINES)
    without = with_dashes.replace("-", "")
    if "-" in with_dashes and not without.strip("*"):
        without = ""
    is_rule = not without and not re.fullmatch(r"[|\s]*-([|\s]+-)*[|\s]*", line)
    fits = len(with_dashes) == width if width else len(with_dashes) in _SIZES
    return with_dashes if fits and not is_rule else without


def _grid(cells: str, source: str, line: int) -> LocatedGrid:
    size = int(len(cells) ** 0.5)
    grid = np.array([_VALUES[cell] for cell in cells], np.uint8).reshape(size, size)
    if grid.max() > size:
        raise DataError(f"{source}, line {line}: has the digit {grid.max()} in a puzzle of size {size}; correct it.")
    return LocatedGrid(grid, f"{source}, line {line}")
