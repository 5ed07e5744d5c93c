"""Prepare puzzles: generate them, or read them from csv files or ARC's JSON, and write a folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.data import ARC, MAZE, SUDOKU, Puzzle, PuzzleSet, puzzles
from attractor.data.arc import BLANK, make_splits, move_pairs, read_tasks
from attractor.data.puzzles import FIRST_DEV_SEED, FIRST_TEST_SEED, MAX_DEV, num_dev
from attractor.errors import ConfigError, DataError
from attractor.files import read_json, require_free
from attractor.progress import TaskProgress


@dataclass(frozen=True, kw_only=True)
class PuzzleSplit:
    """One split: its number of puzzles, the size of a grid in cells, mean difficulty and mean rating."""

    name: str
    num_puzzles: int
    height: int
    width: int
    difficulty: float
    rating: float | None


@dataclass(frozen=True, kw_only=True)
class PuzzleSummary:
    """A folder of puzzles.

    ``difficulty_name`` is the unit of the difficulties, such as "clues". ``num_copies`` test puzzles of a csv were left
    out, because they are symmetric copies of training puzzles.
    """

    folder: Path
    kind: str
    difficulty_name: str
    splits: tuple[PuzzleSplit, ...]
    num_copies: int = 0


def prepare_sudoku(
    out: Path | str, *, size: int | None = None, clues: int | None = None, **source: Any
) -> PuzzleSummary:
    """Write a folder of Sudokus: generated ones with one solution, or csv files in the format of Sudoku-Extreme.

    No test puzzle is a symmetric copy of a training puzzle: copies are not generated, and those in a csv are left out. A
    third split, ``dev``, for accuracy during training, has a tenth as many puzzles as the training split, at most 100. Of
    a csv these are training puzzles outside the sample; there are none without ``num_train``.

    Parameters
    ----------
    out
        The folder to write. It must not exist.
    size, clues
        For generated puzzles: digits (4, 6 or 9, the default), and given digits. By default puzzles are minimal.
    source
        ``num`` and ``num_test``: numbers of generated puzzles (1000 each). Or ``train`` and ``test``: two csv files or hub
        datasets to read, of which ``num_train`` and ``num_test`` puzzles are sampled. ``seed`` (0): of everything random.
        ``progress``: whether to draw a progress bar.

    Raises
    ------
    ConfigError, DataError
        For invalid settings, and for csv files that cannot be read.
    """
    return _prepare_puzzles(SUDOKU, Path(out), {"size": size, "clues": clues}, {"size": 9, "clues": None}, **source)


def prepare_mazes(
    out: Path | str,
    *,
    style: str | None = None,
    size: int | None = None,
    min_path: int | None = None,
    max_path: int | None = None,
    **source: Any,
) -> PuzzleSummary:
    """Write a folder of mazes with shortest paths: generated ones, or csv files in the format of Maze-Hard.

    Parameters
    ----------
    style
        For generated mazes: "perfect" (the default), with one path between any two cells; "unique", the perfect mazes of
        Maze-Unique; or "walls", random walls with loops.
    size
        Height and width, border included; odd for perfect mazes. By default 31, or 30 for the other styles.
    min_path, max_path
        The fewest and the most steps from S to G; 100 and 140 by default for "unique". Walls of size 30 with at least 111
        steps are as hard as Maze-Hard.
    out, source
        As in :func:`prepare_sudoku`.
    """
    settings = {"style": style, "size": size, "min_path": min_path, "max_path": max_path}
    defaults: dict[str, Any] = {"style": "perfect", "size": 31, "min_path": 1, "max_path": None}
    if style in ("unique", "walls"):
        defaults |= {"size": 30} | ({"min_path": 100, "max_path": 140} if style == "unique" else {})
    return _prepare_puzzles(MAZE, Path(out), settings, defaults, **source)


def prepare_arc(
    folder: Path | str,
    /,
    out: Path | str,
    *,
    num_augmentations: int = 100,
    parts: Sequence[str] = (),
    names: Path | str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PuzzleSummary:
    """Write a folder of ARC's tasks, each with symmetric copies: turned, reflected, and with other colours.

    Pairs that demonstrate a task are training puzzles; so are the test pairs of tasks for training. Test pairs of the
    evaluation are test puzzles, unless the same pair is a training puzzle. The grids of training pairs are moved in their
    cells, see :func:`attractor.data.arc.move_pairs`.

    Parameters
    ----------
    folder
        See :func:`attractor.data.arc.read_tasks`.
    num_augmentations
        Copies of each task; published models have 1000. Each pair of grids needs about 4 KB of memory.
    parts
        The parts of the folder to read, such as ``["training", "evaluation", "concept"]``. By default all.
    names
        A JSON list of puzzle names, ``identifiers.json`` of a published data set, in place of new copies.
    seed
        Draws the copies and the moves.

    Raises
    ------
    ConfigError, DataError
        For invalid settings, and for tasks that cannot be read.
    """
    out = Path(out)
    require_free(out)
    if num_augmentations < 0 or seed < 0:
        raise ConfigError(f"num_augmentations={num_augmentations}, seed={seed}: give whole numbers from 0 up.")
    tasks = read_tasks(Path(folder), parts)
    known = None if names is None else read_json(Path(names), DataError, kind=list)
    if known is not None and (known[:1] != [BLANK] or not all(isinstance(name, str) for name in known)):
        raise DataError(f"{names}: is no list of puzzle names that begins with {BLANK!r}; give identifiers.json.")
    with TaskProgress(enabled=progress) as bars:
        advance = bars.count("tasks", len(tasks))
        splits = make_splits(tasks, num_augmentations=num_augmentations, seed=seed, names=known, advance=advance)
    settings = {"num_augmentations": num_augmentations, "seed": seed} if known is None else {"names": str(names)}
    copies = ARC.find_copies(splits["test"], splits["train"])
    splits["test"] = _remove(splits["test"], copies)
    splits["train"] = move_pairs(splits["train"], np.random.default_rng([seed, 1]))
    puzzles.write(out, splits, metadata={"folder": str(folder), "parts": list(parts), **settings})
    return summarize(out, splits, num_copies=len(copies))


def _prepare_puzzles(
    puzzle: Puzzle,
    out: Path,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    num: int | None = None,
    num_test: int | None = None,
    train: str | None = None,
    test: str | None = None,
    num_train: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PuzzleSummary:
    require_free(out)
    if bool(train) != bool(test):
        raise ConfigError("give both train and test, or neither of them to generate puzzles.")
    for name, value in {**settings, "num": num}.items():
        if train and value is not None:
            raise ConfigError(f"{name} is for generated puzzles, but train and test name files; leave one of them out.")
    if num_train is not None and not train:
        raise ConfigError("num_train takes a sample of the csv given as train; to generate puzzles give num.")
    if not 0 <= seed < FIRST_TEST_SEED:
        raise ConfigError(f"seed={seed}: give a whole number from 0 to {FIRST_TEST_SEED - 1}.")
    for name, value in (("num", num), ("num_train", num_train), ("num_test", num_test)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: give a whole number from 1 up.")
    if train and test:
        metadata = {"train": train, "test": test, "num_train": num_train, "num_test": num_test, "seed": seed}
        splits = {}
        splits["train"], rest = _read_sample(puzzle, train, "train", num_train, seed)
        splits["test"], _ = _read_sample(puzzle, test, "test", num_test, seed)
        copies = puzzle.find_copies(splits["test"], splits["train"])
        splits["test"] = _remove(splits["test"], copies)
        if not splits["test"]:
            num = len(copies)
            raise DataError(f"all {num} test puzzles are symmetric copies of training puzzles; give other files.")
        for other in list(splits.values()):
            rest = _remove(rest, puzzle.find_copies(rest, other)) if rest else rest
        splits |= {"dev": rest[: num_dev(len(splits["train"]))]} if rest else {}
    else:
        chosen = {name: defaults[name] if value is None else value for name, value in settings.items()}
        num, num_test, copies = num or 1000, num_test or 1000, np.empty(0, np.int64)
        metadata = {**chosen, "num": num, "num_test": num_test, "seed": seed}
        splits = {}
        starts = (seed, FIRST_TEST_SEED + seed, FIRST_DEV_SEED + seed)
        with TaskProgress(enabled=progress) as bars:
            exclude = None
            for split, n, start in zip(("train", "test", "dev"), (num, num_test, num_dev(num)), starts, strict=True):
                advance = bars.count(f"{split} puzzles", n)
                splits[split] = puzzle.generate(n, seed=start, exclude=exclude, advance=advance, **chosen)
                exclude = splits[split] if exclude is None else exclude + splits[split]
    puzzles.write(out, splits, metadata=metadata)
    return summarize(out, splits, num_copies=len(copies))


def _read_sample(puzzle: Puzzle, source: str, split: str, num: int | None, seed: int) -> tuple[PuzzleSet, PuzzleSet]:
    """Read a csv. Return ``num`` of its puzzles, in order, and some others. A larger sample contains the smaller ones."""
    found = puzzle.read_table(source, split)
    if num is None:
        return found, found[:0]
    if num > len(found):
        raise DataError(f"{source}: holds {len(found)} puzzles; give at most as many as num_{split}.")
    keys = np.random.PCG64(seed).random_raw(len(found))  # raw bits, because NumPy guarantees that they never change
    order = np.argsort(keys, kind="stable")
    return found[np.sort(order[:num])], found[np.sort(order[num : num + MAX_DEV])]


def _remove(puzzles: PuzzleSet, copies: NDArray[np.integer[Any]]) -> PuzzleSet:
    kept = np.ones(len(puzzles), np.bool_)
    kept[copies] = False
    return puzzles[kept]


def summarize(folder: Path, splits: Mapping[str, PuzzleSet], num_copies: int = 0) -> PuzzleSummary:
    """Return the summary of puzzles in a folder."""
    puzzle = next(iter(splits.values())).puzzle
    return PuzzleSummary(
        folder=folder,
        kind=puzzle.kind,
        difficulty_name=puzzle.difficulty_name,
        splits=tuple(
            PuzzleSplit(
                name=name,
                num_puzzles=len(found),
                height=found.questions.shape[1],
                width=found.questions.shape[2],
                difficulty=puzzle.difficulty(found),
                rating=None if found.ratings is None else float(found.ratings.mean()),
            )
            for name, found in splits.items()
        ),
        num_copies=num_copies,
    )
