"""Solve puzzles with a trained reasoner, and check the answers."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attractor.data import SUDOKU, LocatedGrid, Puzzle, PuzzleSet
from attractor.data.puzzle import Grid, Grids
from attractor.data.sudoku import deduce
from attractor.errors import ConfigError, DataError
from attractor.evaluation import EvaluationProtocol, run_search
from attractor.models.reasoning import Reasoner
from attractor.progress import TaskProgress

TOLERANCE, MAX_EVALUATIONS = 1e-4, 2048  # by default
Puzzles = str | Path | LocatedGrid | PuzzleSet | Grid | Grids | Iterable["Puzzles"]


@dataclass(frozen=True, kw_only=True)
class PuzzleSolution:
    """A puzzle with the answer of a reasoner.

    Attributes
    ----------
    question, answer
        (H, W) uint8.
    verdict
        One sentence: whether the answer is correct, and otherwise what is wrong.
    is_correct
        Whether the answer is correct.
    wrong_cells
        The (row, column) of cells that break the rules, from 0.
    residual
        The relative residual of the answer.
    converged
        Whether the residual is below the tolerance.
    evaluations
        Evaluations of the update, over all restarts or guesses.
    guesses
        Guesses of a search.
    seconds
        The time for this puzzle.
    place
        Where the puzzle was read from, such as "file.txt, line 3".
    probabilities
        (H, W, classes), on the CPU.
    init_state
        (1, H, W, state width), the initial state of the restart that was kept.
    """

    question: Grid
    answer: Grid
    verdict: str
    is_correct: bool
    wrong_cells: tuple[tuple[int, int], ...]
    residual: float
    converged: bool
    evaluations: int
    guesses: int = 0
    seconds: float
    place: str = ""
    probabilities: Tensor = field(repr=False)
    init_state: Tensor = field(repr=False)


@dataclass(frozen=True)
class LoadedReasoner:
    """A reasoner in evaluation mode, the kind and size of the puzzles it was trained on, and its folder.

    ``protocol`` are its settings for :func:`attractor.evaluate`; for an imported model, those of its authors.
    ``names_checksum`` tells the puzzle names that it was trained with; None if they are not known.
    """

    model: Reasoner
    puzzle: Puzzle
    size: int
    path: Path
    protocol: EvaluationProtocol = field(default_factory=EvaluationProtocol)
    names_checksum: int | None = None

    def solve(self, puzzles: Puzzles, **settings: Any) -> list[PuzzleSolution]:
        """Solve and check puzzles. Settings are those of :func:`solve_puzzles`."""
        return solve_puzzles(self, puzzles, **settings)


def solve_puzzles(
    loaded: LoadedReasoner,
    puzzles: Puzzles,
    *,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    breadth: int = 1,
    search: bool = False,
    seed: int = 0,
    progress: bool = False,
) -> list[PuzzleSolution]:
    """Solve puzzles one after another. All are checked before the first is solved.

    Parameters
    ----------
    puzzles
        A puzzle as text; the path of a text file or a csv; grids (H, W) or (N, H, W); a ``PuzzleSet``; or a list of
        these.
    depth, tolerance, max_evaluations
        Make exactly ``depth`` evaluations; or solve to a relative residual with at most so many (by default 1e-4 and
        2048).
    breadth
        The number of random restarts. The answer with the lowest residual is kept.
    search
        For Sudokus: search with guesses, see :func:`attractor.evaluation.run_search`, with at most ``max_evaluations``.
    seed
        Seed of the initial states, the same for every puzzle.

    Raises
    ------
    DataError
        For a puzzle that is malformed, has no unique answer, or does not fit to the model. The message names its place.
    ConfigError
        For invalid settings.
    """
    if depth is not None and depth < 1:
        raise ConfigError(f"depth={depth}: give a whole number from 1 up.")
    if search and loaded.puzzle.kind != SUDOKU.kind:
        raise ConfigError(
            f"search guesses digits of Sudokus; leave it out for puzzles of the kind {loaded.puzzle.kind}."
        )
    if search and (depth, tolerance, breadth) != (None, None, 1):
        raise ConfigError("search replaces depth, tolerance and breadth; leave them out, or give max_evaluations.")
    if depth is None:
        tolerance = TOLERANCE if tolerance is None else tolerance
        max_evaluations = MAX_EVALUATIONS if max_evaluations is None else max_evaluations
    budget = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations, "breadth": breadth}
    located, solutions = locate_puzzles(loaded.puzzle, puzzles), []
    with TaskProgress(enabled=progress) as bars:
        checking, solving = bars.follow("checking"), bars.follow("solving")
        shapes: set[tuple[int, ...]] = set()
        for number, one in enumerate(located, start=1):
            _check(loaded, one, shapes)
            checking(number, len(located))
        for number, one in enumerate(located, start=1):
            solutions.append(
                _search_one(loaded, one, seed, budget) if search else _solve_one(loaded, one, seed, budget)
            )
            solving(number, len(located))
    return solutions


def _solve_one(loaded: LoadedReasoner, located: LocatedGrid, seed: int, budget: dict[str, Any]) -> PuzzleSolution:
    start, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    output = loaded.model.solve(_as_question(loaded, located.grid)[None], generator=generator, **budget)
    # Without symbols that no answer has, such as the padding of an imported model.
    logits = output.logits[0, ..., : loaded.puzzle.num_classes(len(located.grid))]
    residual = float(output.solution.residual[0])
    assert output.init_state is not None
    return PuzzleSolution(
        **_checked(loaded, located, logits.argmax(dim=-1)),
        residual=residual,
        converged=residual < (budget["tolerance"] or TOLERANCE),
        evaluations=int(output.solution.evaluations[0]),
        seconds=time.perf_counter() - start,
        probabilities=logits.softmax(dim=-1).cpu(),
        init_state=output.init_state,
    )


def _search_one(loaded: LoadedReasoner, located: LocatedGrid, seed: int, budget: dict[str, Any]) -> PuzzleSolution:
    start, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    question = _as_question(loaded, located.grid)[None]
    state = loaded.model.init_state(question, generator)
    found = run_search(loaded.model, question, deduce, max_evaluations=budget["max_evaluations"], init_state=state)
    return PuzzleSolution(
        **_checked(loaded, located, found.answers[0]),
        residual=float(found.residual[0]),
        converged=float(found.residual[0]) < budget["tolerance"],
        evaluations=int(found.evaluations[0]),
        guesses=int(found.guesses[0]),
        seconds=time.perf_counter() - start,
        probabilities=found.probabilities[0],
        init_state=state,
    )


def _checked(loaded: LoadedReasoner, located: LocatedGrid, answer: Tensor) -> dict[str, Any]:
    """Return the fields of a :class:`PuzzleSolution` that do not depend on how it was found."""
    grid = answer.cpu().numpy().astype(np.uint8)
    verdict = loaded.puzzle.verdict(located.grid, grid)
    return {
        "question": located.grid,
        "answer": grid,
        "verdict": str(verdict),
        "is_correct": verdict.is_correct,
        "wrong_cells": verdict.cells,
        "place": located.place,
    }


def locate_puzzles(puzzle: Puzzle, puzzles: Puzzles) -> list[LocatedGrid]:
    """Return questions with the places where they were read, see :func:`solve_puzzles`. Raises DataError."""
    if isinstance(puzzles, LocatedGrid):
        return [puzzles]
    if isinstance(puzzles, str) and not os.path.exists(puzzles) and puzzle.is_text(puzzles):
        return puzzle.parse(puzzles, source="the puzzle")
    if isinstance(puzzles, str | Path):
        return puzzle.read(puzzles)
    grids = puzzles.questions if isinstance(puzzles, PuzzleSet) else puzzles
    if not isinstance(grids, np.ndarray):
        return [located for one in grids for located in locate_puzzles(puzzle, one)]
    if grids.ndim not in (2, 3):
        raise DataError(f"puzzles have the shape {grids.shape}; give one grid (H, W), or several (N, H, W).")
    several = grids[None] if grids.ndim == 2 else grids
    return [LocatedGrid(np.asarray(grid, np.uint8), f"puzzle {n} (from 0)") for n, grid in enumerate(several)]


def animate_solution(
    loaded: LoadedReasoner,
    solution: PuzzleSolution,
    file: Path,
    *,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
) -> None:
    """Write a GIF of the trajectory from the initial state that was kept. The budget is that of the solve."""
    from attractor.evaluation import trajectory
    from attractor.plots import plot_trajectory, render_digits, render_grid

    question = _as_question(loaded, solution.question)
    depths = animation_depths(depth or max_evaluations or MAX_EVALUATIONS)
    tolerance = tolerance or (TOLERANCE if depth is None else 0.0)
    frames, residuals = trajectory(loaded.model, question, depths, init_state=solution.init_state, tolerance=tolerance)
    frames = [frame[..., : solution.probabilities.shape[-1]] for frame in frames]
    # A solve that reached its limit returns the point before its last evaluation, because the residual of that one is
    # known.
    frames[-1], residuals[-1] = solution.probabilities, solution.residual
    box = loaded.puzzle.box_shape(len(solution.question))
    render = render_grid if box is None else render_digits(question.cpu(), box)
    plot_trajectory(frames, depths[: len(frames)], residuals, animation=file, render=render, tolerance=tolerance)


def _check(loaded: LoadedReasoner, located: LocatedGrid, shapes: set[tuple[int, ...]]) -> None:
    """Raise a DataError with the place of a puzzle that is invalid or does not fit to the model.

    ``shapes`` are those of grids that the model is known to accept.
    """
    grid, puzzle = located.grid, loaded.puzzle
    try:
        num_symbols = puzzle.num_symbols(len(grid))
        if num_symbols > loaded.model.num_symbols:
            raise DataError(
                f"this puzzle of size {len(grid)} has {num_symbols} symbols, and the model knows {loaded.model.num_symbols}; "
                f"give puzzles of size {loaded.size}."
            )
        if grid.shape not in shapes:  # one evaluation shows whether its networks accept such a grid
            with torch.no_grad():
                loaded.model(_as_question(loaded, grid)[None], depth=1)
        shapes.add(grid.shape)
        puzzle.check(grid)
    except DataError as error:
        raise DataError(f"{located.place}: {error}" if located.place else str(error)) from error


def _as_question(loaded: LoadedReasoner, grid: Grid) -> Tensor:
    """Return the grid (H, W) as int64, on the model's device."""
    return torch.from_numpy(np.array(grid)).long().to(next(loaded.model.parameters()).device)


def animation_depths(last: int) -> Sequence[int]:
    """Return the depths of the frames: all of the first ones, then fewer and fewer, and the last."""
    depths = [1]
    while depths[-1] < last:
        depths.append(min(last, depths[-1] + max(1, depths[-1] // 24)))
    return depths
