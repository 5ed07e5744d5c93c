"""``attractor solve``: solve mazes and Sudokus, and check the answers."""

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attractor.cli.options import read_standard_input
from attractor.cli.output import say
from attractor.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text

    from attractor.data import Puzzle
    from attractor.experiment.solve import PuzzleSolution

STYLES = {"#": "grey37", " ": "", "S": "bold cyan", "G": "bold magenta", "o": "bold yellow"}
WRONG = "bold white on red"
MAX_SHOWN = 10  # up to so many puzzles are drawn; of more, a summary and so many wrong answers are printed


def solve(
    checkpoint: str,
    puzzle: str | None = None,
    /,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    breadth: int = 1,
    search: bool = False,
    seed: int = 0,
    gif: Path | None = None,
) -> int:
    """Solve puzzles; print answer, verdict, residual, evaluations and time. For more than ten, print a summary.

    Every answer is checked against the rules, without the model. Cells that break them are red. The exit code is 0 if all
    answers are right, 1 if one is wrong, and 2 if a puzzle or an option is invalid.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest checkpoint is used. If it is left out, a
            model that comes with the package solves the puzzle.
        puzzle: Sudokus: one in a line, "." for blanks, or a text or csv file of several. Mazes: a text file with "#"
            for walls, spaces, one S and one G, and blank lines between several mazes; or a csv. "-" reads standard
            input.
        depth: Make exactly this number of evaluations instead of solving to a tolerance.
        tolerance: Solve to this relative residual (default 1e-4).
        max_evaluations: The largest number of evaluations for a tolerance or a search (default 2048).
        breadth: The number of random restarts; the answer with the lowest residual is kept.
        search: For Sudokus: let the model guess digits, and the rules take wrong guesses back, until an answer follows
            the rules. The default for 9 × 9 Sudokus without a checkpoint, --depth, --tolerance, --breadth and --gif.
        seed: Seed of the random initial states.
        gif: A file for an animation of the first puzzle's trajectory, from the initial state that was kept.
    """
    from attractor.experiment.device import one_thread_if_small
    from attractor.experiment.loading import load_reasoner
    from attractor.experiment.pretrained import pretrained_for
    from attractor.experiment.solve import animate_solution, solve_puzzles
    from attractor.files import require_output_file

    if gif is not None and (gif.suffix.lower() != ".gif" or gif.is_dir() or not os.access(gif.parent, os.W_OK)):
        raise ConfigError(
            f"--gif {gif}: cannot be written; give a name that ends in .gif, in a folder that can be written to."
        )
    if gif is not None:
        require_output_file(gif)
    if search and gif is not None:
        raise ConfigError("--gif shows one trajectory, without guesses; leave out --search.")
    given = checkpoint if puzzle is None else puzzle
    text = read_standard_input() if given == "-" else given
    name = pretrained_for(text) if puzzle is None else checkpoint
    loaded = load_reasoner(name)
    puzzles = loaded.puzzle.parse(text, source="standard input") if given == "-" else given
    budget: dict[str, Any] = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
    is_default = puzzle is None and (depth, tolerance, breadth, gif) == (None, None, 1, None)
    search |= is_default and loaded.protocol.search
    with one_thread_if_small(loaded.model):
        solutions = solve_puzzles(loaded, puzzles, **budget, breadth=breadth, search=search, seed=seed, progress=True)
        _print_summary(solutions) if len(solutions) > MAX_SHOWN else _print_each(loaded.puzzle, solutions)
        if gif is not None:
            animate_solution(loaded, solutions[0], gif, **budget)
    return int(not all(solution.is_correct for solution in solutions))


def _print_each(puzzle: "Puzzle", solutions: Sequence["PuzzleSolution"]) -> None:
    from rich.console import Console

    console = Console()
    for solution in solutions:
        console.print(draw(puzzle, solution), soft_wrap=True)  # so that a wide grid is not folded
        marked = "; cells that break the rules are red" if solution.wrong_cells and console.color_system else ""
        say(f"{solution.verdict}{marked}")
        # The first evaluation from a state of zero has no relative residual.
        residual = f"{solution.residual:.1e}" if math.isfinite(solution.residual) else "unknown"
        end = f"residual {residual} ({'converged' if solution.converged else 'not converged'})"
        if solution.guesses:
            end = f"{solution.guesses} guesses"
        say(f"{end}, {solution.evaluations} evaluations, {solution.seconds:.2f} s", "")


def _print_summary(solutions: Sequence["PuzzleSolution"]) -> None:
    """Print the first wrong answers with their places, and one line about all."""
    wrong = [f"{solution.place}: {solution.verdict}" for solution in solutions if not solution.is_correct]
    say(*wrong[:MAX_SHOWN])
    if len(wrong) > MAX_SHOWN:
        print(f"… and {len(wrong) - MAX_SHOWN:,} more that are wrong")
    converged = [solution for solution in solutions if solution.converged]
    print(
        f"{len(solutions):,} puzzles: {len(solutions) - len(wrong):,} verified; {len(converged):,} converged, "
        f"{sum(s.is_correct for s in converged):,} of these verified; "
        f"{statistics.median(s.evaluations for s in solutions):.0f} evaluations (median), "
        f"{sum(s.seconds for s in solutions):.1f} s."
    )


def draw(puzzle: "Puzzle", solution: "PuzzleSolution") -> "Text":
    """Return the answer in colours: digits that were given are bold, those that were found cyan, wrong cells red."""
    import numpy as np
    from rich.text import Text

    text = puzzle.render(solution.answer)
    alphabet = puzzle.alphabet(len(solution.question))
    drawing, cells = Text(text), [place for place, character in enumerate(text) if character in alphabet]
    for place, given, cell in zip(cells, solution.question.flat, np.ndindex(solution.answer.shape), strict=True):
        style = STYLES.get(text[place], "bold" if given else "cyan")
        drawing.stylize(WRONG if cell in solution.wrong_cells else style, place, place + 1)
    return drawing
