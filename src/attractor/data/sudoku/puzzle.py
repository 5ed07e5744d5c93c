"""Sudoku as a :class:`~attractor.data.puzzle.Puzzle`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.data.puzzle import PUZZLES, Advance, Puzzle, PuzzleSet
from attractor.data.sudoku.generate import generate
from attractor.data.sudoku.rules import BOXES, Grid
from attractor.data.sudoku.solver import check
from attractor.data.sudoku.symmetry import augment, equivalent_pairs
from attractor.data.sudoku.text import parse_all, render, tables, verdict

_CHARACTERS = set(".0123456789|-+ ")  # of a grid in one line


class Sudoku(Puzzle):
    """Questions have 0 for a blank; all other values are digits."""

    kind = "sudoku"
    difficulty_name = "clues"
    has_unique_answer = True
    parse = staticmethod(parse_all)
    tables = staticmethod(tables)
    augment = staticmethod(augment)
    check = staticmethod(check)
    verdict = staticmethod(verdict)

    def alphabet(self, size: int) -> str:
        return ".123456789"[: size + 1]

    def num_symbols(self, size: int) -> int:
        return size + 1

    def box_shape(self, size: int) -> tuple[int, int] | None:
        return BOXES[size]

    def is_text(self, argument: str) -> bool:
        num_known = sum(character in _CHARACTERS for character in argument)
        is_line = len(argument) in (16, 36, 81) and num_known > len(argument) / 2
        return "\n" in argument or is_line or num_known == len(argument)

    def generate(
        self,
        num: int,
        *,
        seed: int,
        exclude: PuzzleSet | None = None,
        advance: Advance = lambda num: None,
        **settings: Any,
    ) -> PuzzleSet:
        """See :func:`attractor.data.sudoku.generate`; the default ``size`` is 9."""
        return generate(num, seed=seed, exclude=exclude, advance=advance, **({"size": 9} | settings))

    def find_copies(self, test: PuzzleSet, train: PuzzleSet) -> NDArray[np.int64]:
        return equivalent_pairs(test, train)[:, 0]

    def render(self, grid: Grid) -> str:
        # A model for larger Sudokus may answer with a digit that this size does not have: it is drawn as a blank.
        return render(np.where(grid <= len(grid), grid, np.uint8(0)))

    def difficulty(self, puzzles: PuzzleSet) -> float:
        return float((puzzles.questions > 0).sum() / len(puzzles))


SUDOKU = Sudoku()
PUZZLES[SUDOKU.kind] = SUDOKU
