"""Mazes as text: drawings of one character per cell, and csv files."""

import os
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from attractor.data.maze.paths import valid_and_shortest, verdict
from attractor.data.maze.rules import ALPHABET, Cell, Grid, Grids
from attractor.data.puzzle import LocatedGrid
from attractor.data.table import Rows, read_rows
from attractor.errors import DataError
from attractor.files import write_text


def render(grid: Grid) -> str:
    """Return a grid (H, W) as text, one line per row, without a final newline."""
    return "\n".join("".join(ALPHABET[cell] for cell in row) for row in grid)


def parse(text: str, *, source: str = "<text>", answers: bool = False) -> Grid:
    """Return the one maze (H, W) in a text; blank lines around it are ignored. See :func:`parse_all`."""
    first, *more = _split(text, source)
    for (number, _), *_ in more:
        raise DataError(f"{source}, line {number}, column 1: a second maze begins; give one at a time.")
    return _parse(first, source, answers)


def parse_all(text: str, *, source: str = "<text>", answers: bool = False) -> list[LocatedGrid]:
    """Return all mazes of a text, of any sizes, separated by blank lines, each with the line where it begins.

    Path marks are allowed only with ``answers``.

    Raises
    ------
    DataError
        For malformed text. The message names ``source``, line and column (both from 1).
    """
    return [
        LocatedGrid(_parse(lines, source, answers), f"{source}, line {lines[0][0]}") for lines in _split(text, source)
    ]


def write(path: str | os.PathLike[str], grids: Iterable[Grid]) -> None:
    """Write grids (H, W) as text that :func:`parse_all` reads. The file is replaced atomically."""
    write_text(Path(path), "\n\n".join(map(render, grids)) + "\n")


def _split(text: str, source: str) -> list[list[tuple[int, str]]]:
    """Return the groups of numbered lines between blank lines, at least one.

    A line of spaces is a row without walls if the line before or after it is as long.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    lengths = [0, *map(len, lines), 0]
    is_row = [
        bool(line.strip()) or (set(line) == {" "} and len(line) in (lengths[i], lengths[i + 2]))
        for i, line in enumerate(lines)
    ]
    groups = groupby(enumerate(lines, start=1), lambda line: is_row[line[0] - 1])
    filled = [list(group) for is_filled, group in groups if is_filled]
    mazes = [group for group in filled if any(line.strip() for _, line in group)]
    if not mazes:
        raise DataError(f"{source}, line 1, column 1: there is no maze; draw one with '#', spaces, S and G.")
    return mazes


def _parse(lines: list[tuple[int, str]], source: str, answers: bool) -> Grid:
    first, width = lines[0][0], len(lines[0][1])

    def error(row: int, column: int, what: str) -> DataError:
        return DataError(f"{source}, line {first + row}, column {column + 1}: {what}.")

    for row, (_, line) in enumerate(lines):
        for column, character in enumerate(line):
            if character not in ALPHABET[: None if answers else Cell.PATH]:
                known = "'#' for wall, a space for floor, 'S', 'G' and, only in an answer, 'o' for the path"
                is_wall = "".join(text for _, text in (lines[0], lines[-1])).count(character) > width
                hint = f"if {character!r} is a wall, replace it by '#'; write" if is_wall else "write"
                raise error(row, column, f"unexpected character {character!r}; {hint} {known}")
        if len(line) != width:
            what = f"this line has {len(line)} characters and the first {width}; make all lines equally long"
            raise error(row, min(len(line), width), what)
    if min(len(lines), width) < 3:
        raise error(0, 0, f"a maze of {len(lines)} x {width} cells has no inside; draw at least 3 x 3")
    grid = np.array([[ALPHABET.index(character) for character in line] for _, line in lines], np.uint8)
    for cell in (Cell.START, Cell.GOAL):
        places = np.argwhere(grid == cell)
        if not len(places):
            raise error(0, 0, f"this maze has no '{ALPHABET[cell]}'; write one on a floor cell")
        for row, column in places[1:]:
            raise error(row, column, f"this is a second '{ALPHABET[cell]}'; keep only one")
    return grid


def tables(source: str | os.PathLike[str], split: str, *, answers: bool = True) -> Iterator[tuple[Rows, Grids, Grids]]:
    """Yield rows of a csv in the format of Maze-Hard with questions and answers (N, size, size), both checked."""
    squares = [size**2 for size in range(3, 256)]
    for rows in read_rows(
        source, split, num_cells=squares, values={c: i for i, c in enumerate(ALPHABET)}, answers=answers
    ):
        size = int(rows.questions.shape[1] ** 0.5)
        questions, solutions = (grids.reshape(-1, size, size) for grids in (rows.questions, rows.answers))
        for cell in (Cell.START, Cell.GOAL):
            for row in np.flatnonzero((questions == cell).sum(axis=(1, 2)) != 1):
                raise rows.error(row, f"the question has not exactly one '{ALPHABET[cell]}'; correct it.")
        for row in np.flatnonzero((questions == Cell.PATH).any(axis=(1, 2))):
            raise rows.error(row, "the question marks a path; write ' ' for its 'o'.")
        for row in np.flatnonzero(~valid_and_shortest(questions, solutions)) if answers else ():
            reason = _explain(questions[row], solutions[row])
            raise rows.error(row, f"the answer is no shortest path ({reason}); correct it.")
        yield rows, questions, solutions


def _explain(question: Grid, answer: Grid) -> str:
    try:
        return str(verdict(question, answer))
    except DataError:
        return "there is no path from S to G"
