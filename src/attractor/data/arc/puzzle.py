"""ARC as a :class:`~attractor.data.puzzle.Puzzle`."""

from dataclasses import replace

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
        """Return the pairs: their symmetries have names, and :func:`move_pairs` has moved them."""
        return questions, answers

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


def move_pairs(data: PuzzleSet, rng: np.random.Generator) -> PuzzleSet:
    """Move the two grids of each pair by the same random rows and columns; one random pair of each name stays (TRM)."""
    assert data.names is not None
    order = rng.permutation(len(data))
    stays = order[np.unique(data.names[order], return_index=True)[1]]
    questions, answers = data.questions.copy(), data.answers.copy()
    for i in np.setdiff1d(order, stays):
        question, answer = read_grid(questions[i]), read_grid(answers[i])
        row, column = rng.integers(SIDE + 1 - np.maximum(question.shape, answer.shape)).tolist()
        questions[i], answers[i] = to_cells(question, row, column), to_cells(answer, row, column)
    return replace(data, questions=questions, answers=answers)


ARC = Arc()
PUZZLES[ARC.kind] = ARC
