"""``attractor solve``: mazes and Sudokus, answered and checked."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from attractor.cli.reasoning import Trained, load_reasoner
from attractor.data import mazes, sudoku
from attractor.errors import ConfigError, DataError
from attractor.evaluate import draw_settling, paint, paint_digits, settling

Grid = NDArray[np.uint8]
STYLES = {"#": "grey37", "S": "bold cyan", "G": "bold magenta", "o": "bold yellow"}
MOMENTS = (
    *range(1, 17),
    *range(18, 65, 2),
    *range(72, 257, 8),
    *range(288, 1025, 32),
)  # depths that an animation shows


def solve(
    checkpoint: Path,
    puzzle: str,
    /,
    depth: int = 2048,
    tolerance: float = 1e-4,
    breadth: int = 1,
    seed: int = 0,
    gif: Path | None = None,
) -> None:
    """Solve puzzles by iterating to rest; print answer, verdict, residual, evaluations and time.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken.
        puzzle: Of Sudokus: one in a line, "." for blanks, or a text or csv file of several. Of mazes: a text file with "#" for
            walls, spaces, one S and one G; blank lines between several. "-" reads standard input.
        depth: The most evaluations.
        tolerance: The relative residual at which the answer is at rest.
        breadth: Random starts to try; the answer that rests most is kept.
        seed: Of the random start.
        gif: A file to draw into how the first puzzle's answer settles.
    """
    if gif is not None and (gif.suffix != ".gif" or gif.is_dir() or not os.access(gif.parent, os.W_OK)):
        raise ConfigError(
            f"--gif {gif}: cannot be written; give a name that ends in .gif, in a folder that can be written to."
        )
    trained = load_reasoner(checkpoint)
    task = TASKS[trained.kind]
    grids = task.read(puzzle)
    for grid in grids:
        task.check(grid)
    console = Console()
    for number, grid in enumerate(grids):
        begun = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        question = torch.from_numpy(grid).long()[None]
        output = trained.model.solve(question, depth=depth, tolerance=tolerance, breadth=breadth, generator=generator)
        seconds = time.perf_counter() - begun
        answer = output.logits[0].argmax(dim=-1).numpy().astype(np.uint8)
        console.print(task.draw(grid, answer), soft_wrap=True)  # a grid wider than the window stays a grid
        residual, evaluations = float(output.solution.residual[0]), int(output.solution.evaluations[0])
        rest = "at rest" if residual < tolerance else f"not at rest within depth {depth}"
        console.print(str(task.verdict(grid, answer)))
        console.print(f"residual {residual:.1e} ({rest}), {evaluations} evaluations, {seconds:.2f} s\n")
        if gif is not None and number == 0:
            _animate(trained, grid, tolerance, seed, gif)


def _animate(trained: Trained, grid: Grid, tolerance: float, seed: int, file: Path) -> None:
    torch.manual_seed(seed)
    question = torch.from_numpy(grid).long()
    frames, residuals = settling(trained.model, question, MOMENTS)
    rest = next((i for i, residual in enumerate(residuals) if residual < tolerance), len(residuals) - 1) + 1
    painter = paint_digits(question, sudoku.BOXES[len(grid)]) if trained.kind == "sudoku" else paint
    draw_settling(frames[:rest], MOMENTS[:rest], residuals[:rest], animation=file, paint=painter)


@dataclass(frozen=True)
class Task:
    """What a kind of puzzles needs: reading from a file, a line or standard input; refusing; drawing; judging."""

    read: Callable[[str], list[Grid]]
    check: Callable[[Grid], None]
    draw: Callable[[Grid, Grid], Text]
    verdict: Callable[[Grid, Grid], Any]


def _read_mazes(text: str) -> list[Grid]:
    return mazes.parse_all(_standard_input(), source="standard input") if text == "-" else mazes.read(text)


def _read_sudokus(text: str) -> list[Grid]:
    if text == "-":
        return sudoku.parse_all(_standard_input(), source="standard input")
    if "\n" in text or len(text) in (16, 36, 81) or set(text) <= set(".0123456789|-+ "):
        return [sudoku.parse(text, source="the puzzle")]
    return sudoku.read(text)


def _draw_maze(question: Grid, answer: Grid) -> Text:
    drawn = Text(mazes.render(answer).rstrip("\n"))
    for symbol, style in STYLES.items():
        drawn.highlight_words([symbol], style)
    return drawn


def _draw_sudoku(question: Grid, answer: Grid) -> Text:
    """Draw givens in bold and what was found in colour."""
    # A model of larger Sudokus may answer with a digit that this one does not have: that is no answer.
    text = sudoku.render(np.where(answer <= len(answer), answer, 0).astype(np.uint8))
    drawn = Text(text)
    cells = [place for place, character in enumerate(text) if character == "." or character.isdigit()]
    for place, given in zip(cells, question.reshape(-1), strict=True):
        drawn.stylize("bold" if given else "cyan", place, place + 1)
    return drawn


TASKS = {
    "maze": Task(_read_mazes, lambda grid: None, _draw_maze, mazes.verdict),
    "sudoku": Task(_read_sudokus, sudoku.check, _draw_sudoku, sudoku.verdict),
}


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8 text (byte {error.start}); give puzzles as plain text."
        ) from error
