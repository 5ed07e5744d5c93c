"""Read ARC's tasks from JSON, and make puzzles with names of them."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attractor.config import suggestion
from attractor.data.arc.grids import IDENTITY, NUM_COLORS, SIDE, Grid, Transform, random_transform, to_cells
from attractor.data.puzzle import PuzzleSet
from attractor.errors import DataError
from attractor.files import read_json

BLANK = "<blank>"  # the first name, of no puzzle, as in the published code
PARTS = ("training", "training2", "concept", "evaluation", "evaluation2")  # the last two are held out
NAME = re.compile(r"(?P<task>[^|]+)(\|\|\|t(?P<dihedral>[0-7])\|\|\|(?P<colors>\d{10}))?")
TRIALS = 5  # for each augmentation that is asked for; small tasks have fewer different ones
NO_TRANSFORM = Transform()
Pair = tuple[Grid, Grid]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: pairs of input and output that demonstrate it, and test pairs, as grids of colours.

    ``is_held_out`` says that its test pairs are for the evaluation, and not for training.
    """

    name: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]
    is_held_out: bool


@dataclass(frozen=True)
class Name:
    """The name of a puzzle: a task, seen through a symmetry. ``str(name)`` is ``TASK|||t3|||0213456789``."""

    task: str
    transform: Transform = NO_TRANSFORM

    def __str__(self) -> str:
        if self.transform == NO_TRANSFORM:
            return self.task
        return f"{self.task}|||t{self.transform.dihedral}|||{''.join(map(str, self.transform.colors))}"

    @classmethod
    def parse(cls, text: str) -> "Name":
        """Read a name. Raises DataError for text that is none."""
        found = NAME.fullmatch(text)
        if found is None or (found["colors"] and sorted(found["colors"]) != sorted(map(str, IDENTITY))):
            raise DataError(f"{text[:60]!r} is not the name of a puzzle of ARC, such as 'TASK|||t3|||0213456789'.")
        if not found["colors"]:
            return cls(found["task"])
        return cls(found["task"], Transform(int(found["dihedral"]), tuple(map(int, found["colors"]))))


def read_tasks(folder: Path, parts: Sequence[str] = ()) -> list[Task]:
    """Return the tasks below a folder, in order of their names.

    The folder has the subfolders ``training`` and ``evaluation`` (or ``data/…``) with a JSON file per task, as ARC-AGI-1
    and ARC-AGI-2 are published; or files ``…training_challenges.json`` and ``…_solutions.json``, and the same with
    ``evaluation``, as on Kaggle. All parts in :data:`PARTS` are read, or only ``parts``. Test pairs of an
    evaluation are held out.

    Raises
    ------
    DataError
        If there are no tasks, a task occurs twice, or a grid is missing or out of range, with file and task.
    """
    found: dict[str, Task] = {}
    for part in parts or PARTS:
        stored = list(_stored_tasks(folder, part))
        if parts and not stored:
            raise DataError(f"{folder}: holds no part {part!r}; {suggestion(part, PARTS)}")
        for file, name, task in stored:
            where = f"{file}, task {name}"
            if name in found:  # its test pairs would be both trained and held out
                raise DataError(f"{where}: occurs in another part, too; leave one of them out (--parts).")
            pairs = {split: _pairs(task, split, where) for split in ("train", "test")}
            found[name] = Task(name=name, is_held_out=part.startswith("evaluation"), **pairs)
    if not any(task.is_held_out for task in found.values()):
        raise DataError(
            f"{folder}: holds no tasks of ARC for the evaluation; give a folder with training/*.json and evaluation/*.json, "
            "or with the files *_challenges.json and *_solutions.json."
        )
    return sorted(found.values(), key=lambda task: (task.is_held_out, task.name))


def _stored_tasks(folder: Path, part: str) -> Iterable[tuple[Path, str, Any]]:
    """Yield the file, the name and the JSON of every task of a part."""
    for directory in (folder / part, folder / "data" / part):
        for file in sorted(directory.glob("*.json")):
            yield file, file.stem, read_json(file, DataError)
    for file in sorted(folder.glob(f"*{part}_challenges.json")):
        solutions = file.with_name(file.name.replace("challenges", "solutions"))
        if not solutions.is_file():
            raise DataError(f"{file}: has no solutions; put {solutions.name} beside it.")
        answers = read_json(solutions, DataError)
        for name, task in read_json(file, DataError).items():
            if isinstance(task, dict):
                for pair, answer in zip(task.get("test") or (), answers.get(name) or (), strict=False):
                    pair["output"] = answer
            yield file, name, task


def _pairs(task: Any, split: str, where: str) -> tuple[Pair, ...]:
    if not isinstance(task, dict) or not task.get(split):
        raise DataError(f"{where}: has no pairs {split!r}; give a task of ARC.")
    return tuple(
        (_grid(pair, "input", f"{where}, {split} pair {n}"), _grid(pair, "output", f"{where}, {split} pair {n}"))
        for n, pair in enumerate(task[split], start=1)
    )


def _grid(pair: Any, side: str, where: str) -> Grid:
    try:
        values = np.array(pair[side])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: has no {side}, or one with rows of different lengths.") from error
    if values.ndim != 2 or not values.size or max(values.shape) > SIDE or values.dtype.kind != "i":
        raise DataError(
            f"{where}: the {side} is {values.shape} {values.dtype}; give rows of 1 to {SIDE} whole numbers."
        )
    if values.min() < 0 or values.max() >= NUM_COLORS:
        raise DataError(
            f"{where}: the {side} holds {values.min()} to {values.max()}; colours are 0 to {NUM_COLORS - 1}."
        )
    return values.astype(np.uint8)


def make_splits(
    tasks: Sequence[Task],
    *,
    num_augmentations: int,
    seed: int = 0,
    names: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda num: None,
) -> dict[str, PuzzleSet]:
    """Return the splits "train" and "test" of tasks, each seen through several symmetries.

    Parameters
    ----------
    num_augmentations
        Symmetric copies of each task, besides the task itself. Two copies of a task are never the same.
    seed
        Draws the symmetries.
    names
        The names of a trained model, in its order, instead of new ones.
    advance
        Called with the number of tasks that are done.

    Raises
    ------
    DataError
        If ``names`` has no name of a task, or the name of an unknown one.
    """
    if names is None:
        rng = np.random.default_rng(seed)
        chosen = {task.name: _augmentations(task, num_augmentations, rng) for task in tasks}
        names = [BLANK, *(str(name) for of_task in chosen.values() for name in of_task)]
    place = {name: n for n, name in enumerate(names)}
    by_task: dict[str, list[Name]] = {task.name: [] for task in tasks}
    for name in map(Name.parse, names[1:]):
        if name.task not in by_task:
            raise DataError(
                f"the names hold {str(name)!r}, and there is no task {name.task!r}; give the tasks of the model."
            )
        by_task[name.task].append(name)
    pairs: dict[str, list[tuple[Grid, Grid, int]]] = {"train": [], "test": []}
    for task in tasks:
        if not by_task[task.name]:
            raise DataError(
                f"the names hold none of the task {task.name!r}; give the names of a model for these tasks."
            )
        for name in by_task[task.name]:
            for split, grids in (("train", task.train), ("test" if task.is_held_out else "train", task.test)):
                for pair in grids:
                    question, answer = (to_cells(name.transform.apply(grid)) for grid in pair)
                    pairs[split].append((question, answer, place[str(name)]))
        advance(1)
    return {split: _puzzle_set(found, tuple(names)) for split, found in pairs.items()}


def _augmentations(task: Task, num: int, rng: np.random.Generator) -> list[Name]:
    """Return the task itself, and up to ``num`` symmetries under which its grids all differ."""
    found = {_key(task, NO_TRANSFORM): NO_TRANSFORM}
    for _ in range(TRIALS * num):
        if len(found) > num:
            break
        transform = random_transform(rng)
        found.setdefault(_key(task, transform), transform)
    return [Name(task.name, transform) for transform in found.values()]


def _key(task: Task, transform: Transform) -> str:
    pairs = [[transform.apply(grid).tolist() for grid in pair] for pair in task.train + task.test]
    return json.dumps(sorted(pairs))


def _puzzle_set(pairs: list[tuple[Grid, Grid, int]], names: tuple[str, ...]) -> PuzzleSet:
    questions, answers, places = zip(*pairs, strict=True)
    return PuzzleSet(
        kind="arc",
        questions=np.stack(questions),
        answers=np.stack(answers),
        names=np.array(places, np.int32),
        all_names=names,
    )
