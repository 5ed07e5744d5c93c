"""Sudokus as text: drawn with their boxes, read from lines, drawings and csv, and judged in a sentence."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attractor.data.puzzles import LocatedGrid, Puzzles, Rows, read_csv
from attractor.data.sudoku.rules import BOXES, Grid, Grids, require_grids, solves, unit_name, units
from attractor.errors import DataError

_LINES = str.maketrans("", "", "|-+ \t\r")  # what draws boxes and means nothing
_CODES = {".": 0} | {str(digit): digit for digit in range(10)}


def render(grid: Grid) -> str:
    """A grid (size, size) drawn with the lines of its boxes and '.' for blanks, without a final newline."""
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
    """The one grid (size, size) in a text: one line of 16, 36 or 81 characters, or a drawing of it.

    Digits are clues; '.' and '0' are blanks; '|', '-', '+' and spaces mean nothing. Whatever is malformed raises a DataError
    that names source and line (from 1) and says what to do. Whether it can be solved is for :func:`check` to say.
    """
    grids = parse_all(text, source=source)
    if len(grids) > 1:
        raise DataError(f"{source}: holds {len(grids)} puzzles; give one at a time.")
    return grids[0]


def parse_all(text: str, *, source: str = "<text>") -> list[Grid]:
    """All grids of a text, of any sizes, one after another."""
    return [placed.grid for placed in parse_located(text, source=source)]


def parse_located(text: str, *, source: str = "<text>") -> list[LocatedGrid]:
    """All grids of a text, each with the line where it begins."""
    grids: list[LocatedGrid] = []
    rows: list[str] = []  # of the drawing that has begun
    begun = number = 0
    for number, line in enumerate(text.splitlines(), start=1):
        cells = line.translate(_LINES)
        if not cells:
            if rows and not line.strip():
                break_at = f"{source}, line {number}: a blank line after {len(rows)} rows of {len(rows[0])}"
                raise DataError(f"{break_at}; give a drawing as many rows as columns.")
            continue
        for character in cells:
            if character not in _CODES:
                raise DataError(
                    f"{source}, line {number}: unexpected {character!r}; write digits, and '.' or '0' for blanks."
                )
        if not rows and len(cells) in [size**2 for size in BOXES]:
            grids.append(_grid(cells, source, number))
            continue
        begun = begun if rows else number
        if len(cells) not in BOXES or (rows and len(cells) != len(rows[0])):
            known = f"{len(rows[0])} as in line {begun}" if rows else "4, 6 or 9 for a row, or 16, 36 or 81 for a grid"
            raise DataError(f"{source}, line {number}: has {len(cells)} cells; give {known}.")
        rows.append(cells)
        if len(rows) == len(cells):
            grids.append(_grid("".join(rows), source, begun))
            rows = []
    if rows:
        raise DataError(f"{source}, line {number}: ends after {len(rows)} rows of {len(rows[0])}; draw all of them.")
    if not grids:
        raise DataError(f"{source}: there is no puzzle; write its digits in reading order, '.' for blanks.")
    return grids


def read(path: str | os.PathLike[str]) -> list[Grid]:
    """All questions (size, size) of a text file, or of a csv. Raises DataError like :func:`parse`."""
    return [placed.grid for placed in read_located(path)]


def read_located(path: str | os.PathLike[str]) -> list[LocatedGrid]:
    """The same, each with its line."""
    path = Path(path)
    if path.suffix == ".csv":
        return [
            LocatedGrid(question, rows.place(row))
            for rows, questions, _ in _tables(path, "train")
            for row, question in enumerate(questions)
        ]
    try:
        return parse_located(path.read_text(encoding="utf-8-sig"), source=str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a text file of Sudokus.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as plain text.") from error


def read_table(source: str | os.PathLike[str], split: str = "train") -> Puzzles:
    """Read a csv in the format of Sudoku-Extreme: ``source,question,answer,rating``, '.' or '0' for blanks.

    Parameters
    ----------
    source
        A path, or a hub dataset ``OWNER/NAME``, such as sapientinc/sudoku-extreme, of which ``SPLIT.csv`` is read.

    Raises
    ------
    DataError
        With file and line, for whatever is malformed and for answers that do not solve their question.
    """
    parts = [(questions, answers, rows.ratings) for rows, questions, answers in _tables(source, split)]
    questions, answers, ratings = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Puzzles(kind="sudoku", questions=questions, answers=answers, ratings=ratings)


def _tables(source: str | os.PathLike[str], split: str) -> Iterator[tuple[Rows, Grids, Grids]]:
    """Rows of a csv with their questions and answers (N, size, size), checked."""
    for rows in read_csv(source, split, num_cells=[size**2 for size in BOXES], codes=_CODES):
        size = int(rows.questions.shape[1] ** 0.5)
        questions, answers = (grids.reshape(-1, size, size) for grids in (rows.questions, rows.answers))
        for name, grids in (("question", questions), ("answer", answers)):
            for row in np.flatnonzero((grids > size).any(axis=(1, 2))):
                raise rows.fault(row, f"the {name} has a digit above {size}; correct it.")
        for row in np.flatnonzero(~solves(questions, answers)):
            raise rows.fault(row, f"the answer is {verdict(questions[row], answers[row])}; correct it.")
        yield rows, questions, answers


def verdict(question: Grid, answer: Grid) -> str:
    """Judge an ``answer`` (size, size): one sentence that begins with "verified" or with "wrong" and says what and where."""
    size = require_grids(question[None], "a question")
    if answer.shape != question.shape:
        return f"wrong: the answer has the shape {answer.shape} and the puzzle {question.shape}"
    for row, column in np.argwhere((question > 0) & (answer != question)):
        given = question[row, column]
        return f"wrong: the answer changes the given {given} at row {row + 1}, column {column + 1}"
    for row, column in np.argwhere((answer < 1) | (answer > size)):
        return f"wrong: the answer leaves row {row + 1}, column {column + 1} blank"
    for index, cells in enumerate(units(size)):
        digits, counts = np.unique(answer.reshape(-1)[cells], return_counts=True)
        for digit in digits[counts > 1]:
            return f"wrong: the answer has the digit {digit} twice in {unit_name(index, size)}"
    return "verified: solved"


def _grid(cells: str, source: str, line: int) -> LocatedGrid:
    size = int(len(cells) ** 0.5)
    grid = np.array([_CODES[cell] for cell in cells], np.uint8).reshape(size, size)
    if grid.max() > size:
        raise DataError(f"{source}, line {line}: has the digit {grid.max()} in a puzzle of size {size}; correct it.")
    return LocatedGrid(grid, f"{source}, line {line}")
