"""``attractor data sudoku`` and ``attractor data mazes``: puzzles, drawn or from others' sets, become a folder to train on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

import attractor.data.maze as maze_room
import attractor.data.sudoku as sudoku_room
from attractor.data.maze import Mazes, fingerprints
from attractor.data.puzzles import Puzzles, read, read_index, require_new, write
from attractor.errors import ConfigError, DataError

Advance = Callable[[int], None]
TEST_SEEDS = (
    2**32
)  # test splits are drawn with seeds from here up, training puzzles with lower ones: no two runs can mix them up


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
    """Make a folder of Sudokus: drawn, each with one solution, or from csv files in the format of Sudoku-Extreme.

    No test puzzle is a symmetric copy of a training puzzle: none is drawn, and those in a csv are left out.

    Args:
        out: Folder to write; must not exist.
        train: A csv (source,question,answer,rating), or a hub dataset OWNER/NAME, whose train.csv is read.
        test: The same for the test split, or the same dataset, whose test.csv is read.
        num_train: Take only so many of the training csv, drawn by the seed.
        size: Without a csv: digits of the puzzles to draw, 4, 6 or 9 (the default).
        num: How many to draw for training; 1000 by default.
        num_test: How many to draw for the test, or to take at most from the test csv; by default 1000, or all.
        clues: Digits given in each. By default puzzles are minimal: no clue can be taken away.
        seed: Of all that is drawn.
    """
    console = _begin(out, train, test, num_train, seed, {"size": size, "num": num, "clues": clues})
    if train and test:
        made = {"train": train, "test": test, "num_train": num_train, "num_test": num_test, "seed": seed}
        splits = _from_tables(sudoku_room.read_table, train, test, num_train, num_test, seed, console)
        copies = sudoku_room.equivalent_pairs(splits["test"], splits["train"])[:, 0]
        _leave_out(splits, copies, console)
    else:
        size, num, num_test = size or 9, _given(num, 1000), _given(num_test, 1000)
        made = {"size": size, "num": num, "num_test": num_test, "clues": clues, "seed": seed}
        _require_counts(num=num, num_test=num_test)

        def draw(count: int, seed: int, exclude: Puzzles | None, advance: Advance) -> Puzzles:
            return sudoku_room.generate(count, size=size, seed=seed, clues=clues, exclude=exclude, advance=advance)

        splits = _drawn(draw, num, num_test, seed, console)
    _finish(out, splits, made, console)


def mazes(
    out: Path,
    kind: Literal["perfect", "walls"] | None = None,
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
    """Make a folder of mazes with their shortest paths: drawn, or from csv files in the format of Maze-Hard.

    No test maze is a rotation or reflection of a training maze: none is drawn, and those in a csv are left out.

    Args:
        out: Folder to write; must not exist.
        kind: Without a csv: perfect mazes (the default), with one path between any two cells, or random walls, with loops.
        size: Height and width, border included; odd for perfect mazes. By default 31, or 30 for walls.
        num: How many to draw for training; 1000 by default.
        num_test: How many to draw for the test, or to take at most from the test csv; by default 1000, or all.
        min_path: The fewest steps from S to G. 111 with walls of size 30 is as hard as Maze-Hard.
        max_path: The most.
        train: A csv (source,question,answer,rating), or a hub dataset OWNER/NAME, whose train.csv is read.
        test: The same for the test split, or the same dataset, whose test.csv is read.
        num_train: Take only so many of the training csv, drawn by the seed.
        seed: Of all that is drawn.
    """
    drawing = {"kind": kind, "size": size, "num": num, "min-path": min_path, "max-path": max_path}
    console = _begin(out, train, test, num_train, seed, drawing)
    if train and test:
        made = {"train": train, "test": test, "num_train": num_train, "num_test": num_test, "seed": seed}
        splits = _from_tables(maze_room.read_table, train, test, num_train, num_test, seed, console)
        if splits["train"].questions.shape[1:] == splits["test"].questions.shape[1:]:
            seen, keys = (fingerprints(splits[name].questions) for name in ("train", "test"))
            _leave_out(splits, np.flatnonzero(np.isin(keys, seen)), console)
    else:
        kind = kind or "perfect"
        size, num, num_test = _given(size, 31 if kind == "perfect" else 30), _given(num, 1000), _given(num_test, 1000)
        bounds = {"min_path": _given(min_path, 1), "max_path": max_path}
        made = {"kind": kind, "size": size, "num": num, "num_test": num_test, "seed": seed, **bounds}
        _require_counts(num=num, num_test=num_test)
        generate: Any = maze_room.generate if kind == "perfect" else maze_room.generate_walls

        def draw(count: int, seed: int, exclude: Puzzles | None, advance: Advance) -> Puzzles:
            seen = Mazes(questions=exclude.questions, answers=exclude.answers) if exclude else None
            drawn = generate(count, size, seed=seed, exclude=seen, advance=advance, **bounds)
            return Puzzles(kind="maze", questions=drawn.questions, answers=drawn.answers)

        splits = _drawn(draw, num, num_test, seed, console)
    _finish(out, splits, made, console)


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


def _begin(
    out: Path, train: str | None, test: str | None, num_train: int | None, seed: int, drawing: dict[str, Any]
) -> Console:
    """Refuse what cannot work, before minutes are spent."""
    require_new(out)
    if bool(train) != bool(test):
        raise ConfigError("give both --train and --test, or neither of them to draw puzzles.")
    for name, value in drawing.items():
        if train and value is not None:
            raise ConfigError(
                f"--{name} is for drawing puzzles, and --train and --test name files; leave one of them away."
            )
    if num_train is not None and not train:
        raise ConfigError("--num-train takes a sample of the csv given with --train; to draw puzzles say --num.")
    if num_train is not None:
        _require_counts(num_train=num_train)
    if not 0 <= seed < TEST_SEEDS:
        raise ConfigError(f"--seed {seed}: give a whole number from 0 to {TEST_SEEDS - 1}.")
    return Console()


def _require_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {count}: give a whole number from 1 up.")


def _from_tables(
    read: Callable[[str, str], Puzzles],
    train: str,
    test: str,
    num_train: int | None,
    num_test: int | None,
    seed: int,
    console: Console,
) -> dict[str, Puzzles]:
    """Read both splits, and take samples of them."""
    splits = {}
    for name, source, wanted in (("train", train, num_train), ("test", test, num_test)):
        if wanted is not None:
            _require_counts(**{f"num_{name}": wanted})
        with console.status(f"reading {source}"):
            puzzles = read(source, name)
        if wanted is not None and wanted > len(puzzles):
            raise DataError(f"{source}: holds {len(puzzles)} puzzles; ask with --num-{name} for at most as many.")
        splits[name] = puzzles if wanted is None else puzzles[_sample(len(puzzles), wanted, seed)]
    return splits


def _sample(total: int, wanted: int, seed: int) -> NDArray[np.intp]:
    """Numbers (wanted,) below ``total``, in order. A larger sample of a seed holds the smaller ones."""
    keys = np.random.PCG64(seed).random_raw(total)  # raw bits, because they are what numpy promises never to change
    return np.sort(np.argsort(keys, kind="stable")[:wanted])


def _leave_out(splits: dict[str, Puzzles], copies: NDArray[np.integer[Any]], console: Console) -> None:
    """Drop test puzzles that are symmetric copies of training puzzles, and say so."""
    test = splits["test"]
    kept = np.ones(len(test), np.bool_)
    kept[copies] = False
    if not kept.any():
        raise DataError(f"all {len(test)} test puzzles are symmetric copies of training puzzles; give other files.")
    splits["test"] = test[kept]
    console.print(
        f"{len(test) - int(kept.sum())} of {len(test)} test puzzles are symmetric copies of training puzzles, and left out.",
        soft_wrap=True,
        highlight=False,
    )


def _drawn(
    draw: Callable[[int, int, Puzzles | None, Advance], Puzzles], num: int, num_test: int, seed: int, console: Console
) -> dict[str, Puzzles]:
    """Draw training puzzles, and with another seed test puzzles that are no symmetric copies of them."""
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = [
            bar.add_task(f"drawing {name} puzzles", total=count) for name, count in (("train", num), ("test", num_test))
        ]
        train = draw(num, seed, None, lambda n: bar.advance(tasks[0], n))
        test = draw(num_test, TEST_SEEDS + seed, train, lambda n: bar.advance(tasks[1], n))
    return {"train": train, "test": test}


def _finish(out: Path, splits: dict[str, Puzzles], made: dict[str, Any], console: Console) -> None:
    write(out, splits, metadata=made)
    console.print(_table(splits))
    console.print(
        f"In {out}/: index.json, and questions and answers of each split as .npy.", soft_wrap=True, highlight=False
    )


def is_puzzles(folder: Path) -> bool:
    """Tell whether a folder looks like one of puzzles."""
    try:
        return bool(read_index(folder))
    except DataError:
        return False


def verify_puzzles(folder: Path, console: Console) -> None:
    """Compare every checksum, and say what is there."""
    console.print(_table({split: read(folder, split) for split in read_index(folder)["splits"]}))


def _table(splits: Mapping[str, Puzzles]) -> Table:
    first = next(iter(splits.values()))
    view = Table()
    for column in ("split", "puzzles", "cells", "clues" if first.kind == "sudoku" else "steps", "rating"):
        view.add_column(column, justify="right", no_wrap=True)
    for name, puzzles in splits.items():
        height, width = puzzles.questions.shape[1:]
        if puzzles.kind == "sudoku":
            figure = (puzzles.questions > 0).sum() / len(puzzles)
        else:
            figure = (puzzles.answers == maze_room.Cell.PATH).sum() / len(puzzles) + 1
        rating = "" if puzzles.ratings is None else f"{puzzles.ratings.mean():.1f}"
        view.add_row(name, f"{len(puzzles):,}", f"{height}×{width}", f"{figure:.1f}", rating)
    return view
