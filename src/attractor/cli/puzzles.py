"""``attractor data sudoku`` and ``attractor data mazes``: write a folder of puzzles, generated or from csv files."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from attractor.cli.options import checked
from attractor.cli.output import add_row, make_table, say, show

if TYPE_CHECKING:
    from attractor.experiment.prepare import PuzzleSummary


@checked
def sudoku(
    out: Path,
    train: str | None = None,
    test: str | None = None,
    num_train: int | None = None,
    size: Literal[4, 6, 9] | None = None,
    num: int | None = None,
    num_test: int | None = None,
    clues: int | None = None,
    seed: int = 0,
) -> None:
    """Write a folder of Sudokus: generated ones with one solution, or csv files in the format of Sudoku-Extreme.

    No test puzzle is a symmetric copy of a training puzzle: copies are not generated, and those in a csv are left out.

    Args:
        out: The folder to write; it must not exist.
        train: A csv (source,question,answer,rating), or a hub dataset OWNER/NAME with the file train.csv.
        test: The same for the test split; of a hub dataset, the file test.csv.
        num_train: The number of puzzles to sample from the training csv.
        size: Without a csv: digits of the puzzles to generate, 4, 6 or 9 (the default).
        num: The number of puzzles to generate for training; 1000 by default.
        num_test: The number to generate for the test (by default 1000), or to sample from the test csv (by default
            all).
        clues: Given digits of each puzzle. By default puzzles are minimal: without any one clue, several solutions
            would exist.
        seed: Seed of everything random.
    """
    options = locals()  # every option by its name
    from attractor.experiment.prepare import prepare_sudoku

    print_written(prepare_sudoku(**options, progress=True))


@checked
def mazes(
    out: Path,
    style: Literal["perfect", "unique", "walls"] | None = None,
    size: int | None = None,
    num: int | None = None,
    num_test: int | None = None,
    min_path: int | None = None,
    max_path: int | None = None,
    train: str | None = None,
    test: str | None = None,
    num_train: int | None = None,
    seed: int = 0,
) -> None:
    """Write a folder of mazes with shortest paths: generated ones, or csv files in the format of Maze-Hard.

    No test maze is a rotation or reflection of a training maze: copies are not generated, and those in a csv are left
    out.

    Args:
        out: The folder to write; it must not exist.
        style: Without a csv: perfect mazes (the default), with one path between any two cells; unique, the perfect mazes
            of Maze-Unique; or random walls, with loops.
        size: Height and width, border included; odd for perfect mazes. By default 31, or 30 for unique and walls.
        num: The number of mazes to generate for training; 1000 by default.
        num_test: The number to generate for the test (by default 1000), or to sample from the test csv (by default
            all).
        min_path: The fewest steps from S to G. 111 with walls of size 30 is as hard as Maze-Hard.
        max_path: The most steps from S to G. By default 100 to 140 steps for unique.
        train: A csv (source,question,answer,rating), or a hub dataset OWNER/NAME with the file train.csv.
        test: The same for the test split; of a hub dataset, the file test.csv.
        num_train: The number of mazes to sample from the training csv.
        seed: Seed of everything random.
    """
    options = locals()  # every option by its name
    from attractor.experiment.prepare import prepare_mazes

    print_written(prepare_mazes(**options, progress=True))


def print_written(summary: "PuzzleSummary") -> None:
    """Print what was written, and the next commands."""
    if summary.num_copies:
        print(f"{summary.num_copies} test puzzles are symmetric copies of training puzzles, and were left out.")
    print_puzzles(summary)
    say(f"In {summary.folder}/: index.json, and questions and answers of each split as .npy.")
    _print_next(summary)


def _print_next(summary: "PuzzleSummary") -> None:
    """Print commands that train on the folder, and that solve the first test puzzle then."""
    from attractor.data import puzzles

    if summary.kind == "arc":
        data = shlex.quote(str(summary.folder))
        say(f"Next: attractor train arc --data {data}", f"Then: attractor evaluate runs/arc --data {data}")
        return
    test = puzzles.read(summary.folder, "test")
    if summary.kind == "sudoku":
        recipe = "sudoku/6x6" if test.size <= 6 else "sudoku/9x9"
        given = ["".join(test.alphabet[value] for value in test.questions[0].flat)]
    else:
        recipe, given = "maze", ["- <<'END'", *test.puzzle.render(test.questions[0]).split("\n"), "END"]
    say(
        f"Next: attractor train {recipe} --data {shlex.quote(str(summary.folder))}",
        f"Then try a test puzzle: attractor solve runs/{recipe} {given[0]}",
        *given[1:],
    )


def print_puzzles(summary: "PuzzleSummary") -> None:
    """Print a table with a row per split."""
    view = make_table(("split", "puzzles", "cells", summary.difficulty_name, "rating"))
    for split in summary.splits:
        rating = "" if split.rating is None else f"{split.rating:.1f}"
        size = f"{split.height}×{split.width}"
        add_row(view, split.name, f"{split.num_puzzles:,}", size, f"{split.difficulty:.1f}", rating)
    show(view)
