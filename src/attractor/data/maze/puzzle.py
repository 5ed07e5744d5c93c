"""Mazes as a :class:`~attractor.data.puzzle.Puzzle`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.data.maze.generate import generate_mixture, generate_unique, generate_walls
from attractor.data.maze.paths import check, steps_to_goal_mod_3, valid_and_shortest, verdict
from attractor.data.maze.rules import ALPHABET, Cell, Grids
from attractor.data.maze.symmetry import augment, fingerprints
from attractor.data.maze.text import parse_all, render, tables
from attractor.data.maze.windows import windows
from attractor.data.puzzle import PUZZLES, Advance, Puzzle, PuzzleSet
from attractor.errors import ConfigError


class Maze(Puzzle):
    """Grids hold values of :class:`attractor.data.maze.Cell`."""

    kind = "maze"
    difficulty_name = "steps"
    has_unique_answer = False
    num_auxiliary_classes = 3
    auxiliary_targets = staticmethod(steps_to_goal_mod_3)
    parse = staticmethod(parse_all)
    tables = staticmethod(tables)
    augment = staticmethod(augment)
    crop = staticmethod(windows)
    check = staticmethod(check)
    verdict = staticmethod(verdict)
    render = staticmethod(render)

    def alphabet(self, size: int) -> str:
        return ALPHABET

    def num_symbols(self, size: int) -> int:
        return len(ALPHABET) - 1  # a question has no path

    def generate(
        self,
        num: int,
        *,
        seed: int,
        exclude: PuzzleSet | None = None,
        advance: Advance = lambda num: None,
        style: str = "perfect",
        corner_fraction: float = 0.0,
        dfs_fraction: float = 0.0,
        **settings: Any,
    ) -> PuzzleSet:
        """Return mazes of a style: "perfect" of :func:`generate_mixture`, "unique" and "walls" of the functions so named."""
        if style not in ("perfect", "unique", "walls"):
            raise ConfigError(f"style={style!r}: give 'perfect', 'unique' or 'walls'.")
        settings |= {"seed": seed, "exclude": exclude, "advance": advance}
        if style == "perfect":
            return generate_mixture(num, corner_fraction=corner_fraction, dfs_fraction=dfs_fraction, **settings)
        if corner_fraction or dfs_fraction:
            raise ConfigError(
                "corner_fraction and dfs_fraction are for style='perfect'; set them to 0 for other styles."
            )
        return (generate_unique if style == "unique" else generate_walls)(num, **settings)

    def find_copies(self, test: PuzzleSet, train: PuzzleSet) -> NDArray[np.int64]:
        if test.questions.shape[1:] != train.questions.shape[1:]:
            return np.empty(0, np.int64)
        return np.flatnonzero(np.isin(fingerprints(test.questions), fingerprints(train.questions)))

    def is_right(self, questions: Grids, answers: Grids, labels: Grids) -> NDArray[np.bool_]:
        return valid_and_shortest(questions, answers)

    def difficulty(self, puzzles: PuzzleSet) -> float:
        return float((puzzles.answers == Cell.PATH).sum() / len(puzzles) + 1)


MAZE = Maze()
PUZZLES[MAZE.kind] = MAZE
