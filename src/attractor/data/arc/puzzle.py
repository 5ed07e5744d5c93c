"""ARC as a :class:`~attractor.data.puzzle.Puzzle`."""

import numpy as np
from numpy.typing import NDArray

from attractor.data.arc.grids import FIRST_COLOR, NUM_COLORS, PAD, SIDE, read_grid, to_cells
from attractor.data.puzzle import PUZZLES, Grid, Grids, Puzzle, PuzzleSet


class Arc(Puzzle):
    """Grids are cells (30, 30): padding, ends of rows and columns, and colours."""

    kind = "arc"
    difficulty_name = "cells of the answer"
    has_unique_answer = True
    ignored = PAD

    def alphabet(self, size: int) -> str:
        return " |0123456789"

    def num_symbols(self, size: int) -> int:
        return FIRST_COLOR + NUM_COLORS

    def augment(self, questions: Grids, answers: Grids, rng: np.random.Generator) -> tuple[Grids, Grids]:
        """Move the grids of each pair by the same random number of rows and columns; the other symmetries have names."""
        moved = [_move(read_grid(q), read_grid(a), rng) for q, a in zip(questions, answers, strict=True)]
        return np.stack([q for q, _ in moved]), np.stack([a for _, a in moved])

    def find_copies(self, test: PuzzleSet, train: PuzzleSet) -> NDArray[np.int64]:
        known, found = (
            [hash(q.tobytes() + a.tobytes()) for q, a in zip(data.questions, data.answers, strict=True)]
            for data in (train, test)
        )
        return np.flatnonzero(np.isin(found, known))

    def render(self, grid: Grid) -> str:
        return "\n".join("".join(map(str, row)) for row in read_grid(grid))

    def difficulty(self, puzzles: PuzzleSet) -> float:
        return float((puzzles.answers >= FIRST_COLOR).sum() / len(puzzles))


def _move(question: Grid, answer: Grid, rng: np.random.Generator) -> tuple[Grid, Grid]:
    most = SIDE - np.maximum(question.shape, answer.shape)
    row, column = (int(n) for n in rng.integers(most + 1))
    return to_cells(question, row, column), to_cells(answer, row, column)


ARC = Arc()
PUZZLES[ARC.kind] = ARC
