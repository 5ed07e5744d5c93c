"""``attractor solve``: mazes and Sudokus, answered and checked."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from attractor.data import maze, sudoku
from attractor.data.puzzles import LocatedGrid
from attractor.errors import ConfigError, DataError
from attractor.evaluation import trajectory
from attractor.experiment.puzzles import LoadedReasoner, load_reasoner
from attractor.models.reasoning import ReasonerOutput
from attractor.plots import plot_trajectory, render_digits, render_grid
from attractor.progress import TaskProgress

Grid = NDArray[np.uint8]
STYLES = {"#": "grey37", "S": "bold cyan", "G": "bold magenta", "o": "bold yellow"}
FEW = 10  # as many puzzles are drawn; of more, a summary is printed, and as many faults


def solve(
    checkpoint: Path,
    puzzle: str,
    /,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    breadth: int = 1,
    seed: int = 0,
    gif: Path | None = None,
) -> None:
    """Solve puzzles; print answer, verdict, residual, evaluations and time; of more than ten, a summary.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken.
        puzzle: Of Sudokus: one in a line, "." for blanks, or a text or csv file of several. Of mazes: a text file with "#" for
            walls, spaces, one S and one G; blank lines between several; or a csv. "-" reads standard input.
        depth: Make exactly so many evaluations, in place of solving to a tolerance.
        tolerance: Solve to this relative residual (default 1e-4).
        max_evaluations: With at most so many evaluations (default 2048).
        breadth: Number of random restarts; the answer with the lowest residual is kept.
        seed: Of the random initial states.
        gif: A file for an animation of the first puzzle's trajectory, from the initial state that was kept.
    """
    if gif is not None and (gif.suffix != ".gif" or gif.is_dir() or not os.access(gif.parent, os.W_OK)):
        raise ConfigError(
            f"--gif {gif}: cannot be written; give a name that ends in .gif, in a folder that can be written to."
        )
    if depth is not None and depth < 1:
        raise ConfigError(f"--depth {depth}: give a whole number from 1 up.")
    if depth is None:
        tolerance = 1e-4 if tolerance is None else tolerance
        max_evaluations = 2048 if max_evaluations is None else max_evaluations
    trained = load_reasoner(checkpoint)
    trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    task = TASKS[trained.kind]
    puzzles = task.read(puzzle)
    with TaskProgress() as bars:
        _refuse(trained, task, puzzles, bars.follow("checking"))
    console, solver = Console(), _Solver(trained, depth, tolerance, max_evaluations, breadth, seed)
    first = solver(puzzles[0].grid)
    answered = zip(puzzles, chain([first], (solver(placed.grid) for placed in puzzles[1:])), strict=True)
    if len(puzzles) > FEW:
        _summarise(answered, len(puzzles), task, console)
    for placed, solved in answered:
        console.print(
            task.draw(placed.grid, solved.answer), soft_wrap=True
        )  # a grid wider than the window stays a grid
        converged = "converged" if solved.converged else "not converged"
        console.print(str(task.verdict(placed.grid, solved.answer)))
        cost = f"{solved.evaluations} evaluations, {solved.seconds:.2f} s"
        console.print(f"residual {solved.residual:.1e} ({converged}), {cost}\n")
    if gif is not None:
        _animate(solver, puzzles[0].grid, first, gif)


@dataclass(frozen=True, kw_only=True)
class Solved:
    """One puzzle's answer, the state that it was reached from, and what it cost."""

    chances: torch.Tensor  # (H, W, classes)
    init_state: torch.Tensor
    residual: float
    converged: bool
    evaluations: int
    seconds: float

    @property
    def answer(self) -> Grid:
        return self.chances.argmax(dim=-1).numpy().astype(np.uint8)


@dataclass(frozen=True)
class _Solver:
    """A reasoner and how it is asked; every puzzle is asked alone and with the same seed."""

    trained: LoadedReasoner
    depth: int | None
    tolerance: float | None
    max_evaluations: int | None
    breadth: int
    seed: int

    def __call__(self, grid: Grid) -> Solved:
        begun = time.perf_counter()
        output: ReasonerOutput = self.trained.model.solve(
            as_question(self.trained, grid)[None],
            depth=self.depth,
            tolerance=self.tolerance,
            max_evaluations=self.max_evaluations,
            breadth=self.breadth,
            generator=torch.Generator().manual_seed(self.seed),
        )
        residual = float(output.solution.residual[0])
        assert output.init_state is not None
        return Solved(
            chances=output.logits[0].softmax(dim=-1).cpu(),
            init_state=output.init_state,
            residual=residual,
            converged=residual < (self.tolerance or 1e-4),
            evaluations=int(output.solution.evaluations[0]),
            seconds=time.perf_counter() - begun,
        )


def as_question(trained: LoadedReasoner, grid: Grid) -> torch.Tensor:
    """Return the grid (H, W) as int64, where the model is."""
    return torch.from_numpy(grid).long().to(next(trained.model.parameters()).device)


def _refuse(
    trained: LoadedReasoner, task: "Task", puzzles: Sequence[LocatedGrid], advance: Callable[[int, int], None]
) -> None:
    """Refuse what is no puzzle, or none for this model, with its place, before anything is solved."""
    shapes = set()
    for number, placed in enumerate(puzzles):
        advance(number, len(puzzles))
        grid = placed.grid
        try:
            if trained.kind == "sudoku" and len(grid) >= trained.model.num_symbols:
                raise DataError(
                    f"this puzzle has {len(grid)} digits, and the model learnt Sudokus of {trained.size}; give such puzzles."
                )
            if grid.shape not in shapes:  # one evaluation tells whether its networks take such a grid
                with torch.no_grad():
                    trained.model(as_question(trained, grid)[None], depth=1)
            shapes.add(grid.shape)
            task.check(grid)
        except DataError as error:
            raise DataError(f"{placed.place}: {error}" if placed.place else str(error)) from error


def _summarise(answered: Iterable[tuple[LocatedGrid, Solved]], num: int, task: "Task", console: Console) -> None:
    """Solve ``num`` puzzles behind a bar; print the first faults with their places, how many are right and converged, the cost."""
    begun, faults, counts, evaluations = time.perf_counter(), [], Counter[str](), []
    with TaskProgress() as bars:
        draw = bars.follow("solving")
        for number, (placed, solved) in enumerate(answered, start=1):
            draw(number, num)
            verdict = str(task.verdict(placed.grid, solved.answer))
            right = verdict.startswith("verified")
            counts["right"] += right
            counts["converged"] += solved.converged
            counts["both"] += right and solved.converged
            evaluations.append(solved.evaluations)
            if not right:
                faults.append(f"{placed.place}: {verdict}")
    for fault in faults[:FEW]:
        console.print(fault, soft_wrap=True, highlight=False)
    if len(faults) > FEW:
        console.print(f"… and {len(faults) - FEW:,} more that are wrong")
    converged = f"{counts['converged']:,} converged, {counts['both']:,} of these verified"
    cost = f"{np.median(evaluations):.0f} evaluations (median), {time.perf_counter() - begun:.1f} s"
    console.print(
        f"{num:,} puzzles: {counts['right']:,} verified; {converged}; {cost}.", soft_wrap=True, highlight=False
    )


def _animate(solver: _Solver, grid: Grid, solved: Solved, file: Path) -> None:
    """Draw the trajectory of the start that was kept, as far as it was followed; the answer that was printed comes last."""
    limit = solver.depth or solver.max_evaluations or 2048
    question, moments = as_question(solver.trained, grid), _moments(limit)
    frames, residuals = trajectory(
        solver.trained.model, question, moments, init_state=solved.init_state, tolerance=solver.tolerance or 0.0
    )
    # A solve that is cut off answers with the point whose residual it knows, one evaluation before the last.
    frames[-1], residuals[-1] = solved.chances, solved.residual
    painter = render_digits(question.cpu(), sudoku.BOXES[len(grid)]) if solver.trained.kind == "sudoku" else render_grid
    plot_trajectory(frames, moments[: len(frames)], residuals, animation=file, render=painter)


def _moments(depth: int) -> list[int]:
    """Depths that an animation shows: all of the first, then ever fewer of them, and the last."""
    moments = [1]
    while moments[-1] < depth:
        moments.append(min(depth, moments[-1] + max(1, moments[-1] // 24)))
    return moments


@dataclass(frozen=True)
class Task:
    """What a kind of puzzles needs: reading from a file, a line or standard input; refusing; drawing; judging."""

    read: Callable[[str], list[LocatedGrid]]
    check: Callable[[Grid], None]
    draw: Callable[[Grid, Grid], Text]
    verdict: Callable[[Grid, Grid], Any]


def _read_mazes(text: str) -> list[LocatedGrid]:
    return maze.parse_located(_standard_input(), source="standard input") if text == "-" else maze.read_located(text)


def _read_sudokus(text: str) -> list[LocatedGrid]:
    if text == "-":
        return sudoku.parse_located(_standard_input(), source="standard input")
    if "\n" in text or len(text) in (16, 36, 81) or set(text) <= set(".0123456789|-+ "):
        return [LocatedGrid(sudoku.parse(text, source="the puzzle"), "")]
    return sudoku.read_located(text)


def _draw_maze(question: Grid, answer: Grid) -> Text:
    drawn = Text(maze.render(answer).rstrip("\n"))
    for symbol, style in STYLES.items():
        drawn.highlight_words([symbol], style)
    return drawn


def _draw_sudoku(question: Grid, answer: Grid) -> Text:
    """Draw givens in bold, what was found in colour, and what stands in place of a given in red."""
    # A model of larger Sudokus may answer with a digit that this one does not have: that is no answer.
    text = sudoku.render(np.where(answer <= len(answer), answer, 0).astype(np.uint8))
    drawn = Text(text)
    cells = [place for place, character in enumerate(text) if character == "." or character.isdigit()]
    for place, given, found in zip(cells, question.reshape(-1), answer.reshape(-1), strict=True):
        drawn.stylize("cyan" if not given else "bold" if found == given else "bold red", place, place + 1)
    return drawn


TASKS = {
    "maze": Task(_read_mazes, maze.check, _draw_maze, maze.verdict),
    "sudoku": Task(_read_sudokus, sudoku.check, _draw_sudoku, sudoku.verdict),
}


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8 text (byte {error.start}); give puzzles as plain text."
        ) from error
