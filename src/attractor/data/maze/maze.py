"""Mazes: drawing them, solving them, reading and writing them as text, and judging an answer.

A maze is the smallest task in which an answer has to travel: up close all floor looks the same, and only the
whole grid tells which cells lie between S and G. What was learned on small mazes can be asked of large ones
by iterating longer (Schwarzschild et al. 2021, arXiv:2108.06011). A question is a grid of walls, floor, start
and goal; its answer is the same grid with a shortest path marked, in the five characters of Maze-Hard (Wang
et al. 2025, arXiv:2506.21734). All of it is numpy over whole batches, and a seed means the same everywhere.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.data.puzzles import LocatedGrid, Puzzles, Rows, read_csv
from attractor.errors import ConfigError, DataError

Grid = NDArray[np.uint8]  # (H, W), values of Cell
Grids = NDArray[np.uint8]  # (N, H, W)

ALPHABET = "# SGo"  # the character of each Cell, by its value
_BATCH = 256  # mazes drawn at a time, part of what a seed means
_WALLS_BATCH = 2048  # the same for random walls, of which most are refused
_PATIENCE = 8  # batches in a row without a new maze after which a size counts as used up


class Cell(IntEnum):
    WALL = 0
    FLOOR = 1
    START = 2
    GOAL = 3
    PATH = 4


@dataclass(frozen=True, kw_only=True)
class Mazes:
    """``questions`` (N, H, W) and ``answers`` (N, H, W), the same with a path marked from S to G."""

    questions: Grids
    answers: Grids

    def __post_init__(self) -> None:
        if self.questions.ndim != 3 or self.questions.shape != self.answers.shape:
            shapes = f"{self.questions.shape} and {self.answers.shape}"
            raise DataError(f"Questions and answers have shapes {shapes}; give both as one (N, H, W).")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, which: slice | NDArray[Any]) -> "Mazes":
        return Mazes(questions=self.questions[which], answers=self.answers[which])


def concatenate(*parts: Mazes) -> Mazes:
    """Return mazes of one size as one batch."""
    return Mazes(
        questions=np.concatenate([part.questions for part in parts]),
        answers=np.concatenate([part.answers for part in parts]),
    )


def generate(
    num_mazes: int,
    size: int,
    *,
    seed: int,
    corners: bool = False,
    dfs: bool = False,
    min_path: int = 1,
    max_path: int | None = None,
    exclude: Mazes | None = None,
    advance: Callable[[int], None] = lambda num: None,
) -> Mazes:
    """Perfect mazes, one path between any two cells, none of them a rotation or reflection of another.

    Parameters
    ----------
    num_mazes
        How many, from 0 up. Fewer mazes of a seed are the first of more.
    size
        Height and width in cells, border included: odd and at least 5, for ((size - 1) / 2)² rooms.
    seed
        The same seed, size and exclusion give the same mazes on every platform.
    corners
        By default S and G are in two rooms drawn at random; or in the first and the last one, corner to corner: longer paths.
    winding
        By default every spanning tree over the rooms is equally likely (Aldous 1990; Broder 1989): many short dead ends.
        Winding mazes come from a randomised depth-first search: few, long dead ends and paths of several times the length.
    min_path, max_path
        The fewest and the most steps from S to G; mazes outside these bounds are drawn again.
    exclude
        Nothing equal to one of these, up to symmetry, is returned: give the training set to draw a test set.
    advance
        Called with the number of mazes just found.

    Raises
    ------
    ConfigError
        A number, seed, size or bound that cannot work, or more mazes than there are.
    """
    _require(num_mazes, seed, min_path, max_path)
    if size < 5 or size % 2 == 0:
        raise ConfigError(f"generate(size={size!r}): the size of a maze must be an odd number from 5 up.")
    rng = np.random.Generator(np.random.PCG64(seed))

    def draw() -> Grids:
        drawn = _draw(_BATCH, size, rng, corners=corners, dfs=dfs)
        if min_path == 1 and max_path is None:
            return drawn
        steps = (shortest_paths(drawn) == Cell.PATH).sum(axis=(1, 2)) + 1
        return drawn[(steps >= min_path) & (steps <= (max_path or size**2))]

    return _collect(num_mazes, size, draw, exclude, advance)


def generate_walls(
    num_mazes: int,
    size: int,
    *,
    seed: int,
    min_path: int = 1,
    max_path: int | None = None,
    floor: float = 0.64,
    exclude: Mazes | None = None,
    advance: Callable[[int], None] = lambda num: None,
) -> Mazes:
    """Mazes of random walls, with loops and open places, none of them a rotation or reflection of another.

    Every inner cell is floor with the same chance. One of S and G is as far as can be from a cell drawn at random, and the other
    is any cell within the bounds from there. Draws without such a cell are refused. What else ``generate`` says of arguments and
    errors holds here too.

    Parameters
    ----------
    size
        Height and width in cells, closed border included: any number from 5 up.
    min_path, max_path
        The fewest and the most steps of a shortest path. The hard mazes of arXiv:2506.21734 have size 30 and more than 110 steps.
    floor
        The chance of a cell to be floor. Near 0.64 shortest paths are longest: more walls cut the grid apart, fewer let one cut
        corners.
    """
    _require(num_mazes, seed, min_path, max_path)
    if size < 5:
        raise ConfigError(f"generate_walls(size={size!r}): the size of a maze must be a number from 5 up.")
    if not 0 < floor <= 1:
        raise ConfigError(f"generate_walls(floor={floor!r}): give a share of floor above 0 and up to 1.")
    rng = np.random.Generator(np.random.PCG64(seed))
    return _collect(
        num_mazes,
        size,
        lambda: _draw_walls(_WALLS_BATCH, size, rng, floor, min_path, max_path or size**2),
        exclude,
        advance,
    )


def _require(num_mazes: int, seed: int, min_path: int, max_path: int | None) -> None:
    for name, value in (("num_mazes", num_mazes), ("seed", seed)):
        if value < 0:
            raise ConfigError(f"generate({name}={value!r}): give a whole number from 0 up.")
    if min_path < 1 or (max_path is not None and max_path < min_path):
        raise ConfigError(f"generate(min_path={min_path!r}, max_path={max_path!r}): give bounds from 1 up, in order.")


def _collect(
    num_mazes: int, size: int, draw: Callable[[], Grids], exclude: Mazes | None, advance: Callable[[int], None]
) -> Mazes:
    """Call ``draw`` until there are enough questions that are no symmetric copies of others or of excluded ones, and solve them."""
    seen = set() if exclude is None else set(fingerprints(exclude.questions).tolist())
    questions, num_found, num_vain = [np.empty((0, size, size), np.uint8)], 0, 0
    while num_found < num_mazes:
        drawn = draw()
        fresh = []
        for i, key in enumerate(fingerprints(drawn).tolist()):
            if key not in seen:
                seen.add(key)
                fresh.append(i)
        fresh = fresh[: num_mazes - num_found]
        questions.append(drawn[fresh])
        num_found += len(fresh)
        num_vain = 0 if fresh else num_vain + 1
        if num_vain == _PATIENCE:
            raise ConfigError(
                f"Only {num_found} of {num_mazes} different mazes of size {size} were found before draws "
                "merely repeated them or excluded ones, or had other paths; ask for fewer, for a larger size or for wider bounds."
            )
        advance(len(fresh))
    answers = [shortest_paths(part) for part in questions]
    return Mazes(questions=np.concatenate(questions), answers=np.concatenate(answers))


def _draw(num: int, size: int, rng: np.random.Generator, *, corners: bool, dfs: bool) -> Grids:
    """Questions (num, size, size); the walkers that carve them move all at once."""
    width = size + 2  # a ring around the border, so that no step leaves the array
    grids = np.full((num, width, width), Cell.WALL, np.uint8)
    rooms = np.arange(width**2).reshape(width, width)[2:-2:2, 2:-2:2].reshape(-1)
    origin = np.arange(num) * width**2
    cells = grids.reshape(-1)  # a view: one flat index addresses every maze
    cells[origin[:, None] + rooms] = Cell.FLOOR
    first = origin + rooms[rng.integers(len(rooms), size=num)]
    steps = np.array([-width, -1, 1, width])
    (_carve_winding if dfs else _carve_uniform)(cells, first, steps, len(rooms), rng)

    start = rng.integers(len(rooms), size=num)
    goal = rng.integers(len(rooms) - 1, size=num)
    goal += goal >= start  # uniform over the rooms other than the start
    if corners:
        start, goal = np.zeros_like(start), np.full_like(goal, len(rooms) - 1)
    cells[origin + rooms[start]] = Cell.START
    cells[origin + rooms[goal]] = Cell.GOAL
    return grids[:, 1:-1, 1:-1]


def _carve_uniform(
    cells: NDArray[np.uint8], here: NDArray[np.intp], steps: NDArray[np.intp], num_rooms: int, rng: np.random.Generator
) -> None:
    """Walk at random from room to room until all are seen, and open the wall before each room seen for the first time."""
    is_room = cells == Cell.FLOOR
    unvisited = is_room.copy()
    unvisited[here] = False
    num_left = np.full(len(here), num_rooms - 1)
    while len(here):
        step = steps[rng.integers(4, size=len(here))]
        there = here + 2 * step
        inside = is_room[there]
        new = unvisited[there]
        cells[(here + step)[new]] = Cell.FLOOR
        unvisited[there[new]] = False
        num_left -= new
        here = np.where(inside, there, here)
        here, num_left = here[num_left > 0], num_left[num_left > 0]


def _carve_winding(
    cells: NDArray[np.uint8], here: NDArray[np.intp], steps: NDArray[np.intp], num_rooms: int, rng: np.random.Generator
) -> None:
    """Walk into an unseen room while there is one beside, else back: depth-first search in random order."""
    unvisited = cells == Cell.FLOOR
    came_from = np.empty(cells.shape, np.intp)  # the stacks of all walkers
    unvisited[here] = False
    came_from[here] = here
    # Each edge of a tree over the rooms is walked at most twice, and the last one only once.
    for _ in range(2 * num_rooms - 3):
        free = unvisited[here[:, None] + 2 * steps]  # (num, 4)
        moves = free.any(axis=1)
        step = steps[np.where(free, rng.random(free.shape), -1.0).argmax(axis=1)]
        there = here + 2 * step
        cells[(here + step)[moves]] = Cell.FLOOR
        unvisited[there[moves]] = False
        came_from[there[moves]] = here[moves]
        here = np.where(moves, there, came_from[here])


def _draw_walls(num: int, size: int, rng: np.random.Generator, floor: float, min_path: int, max_path: int) -> Grids:
    """Questions (at most num, size, size) whose shortest path keeps the bounds."""
    grids = np.full((num, size, size), Cell.WALL, np.uint8)
    inside = rng.random((num, size - 2, size - 2)) < floor
    grids[:, 1:-1, 1:-1][inside] = Cell.FLOOR
    cells = grids.reshape(-1)  # a view
    offset = np.arange(num) * size**2

    def pick(allowed: NDArray[np.bool_]) -> NDArray[np.intp]:
        """A random allowed cell of each maze, or any cell where none is."""
        return np.where(allowed, rng.random(allowed.shape), -1.0).reshape(num, -1).argmax(axis=1) + offset

    middle = pick(grids == Cell.FLOOR)
    start = _distances(grids, middle).reshape(num, -1).argmax(axis=1) + offset
    steps = _distances(grids, start)
    goal = pick((steps >= min_path) & (steps <= max_path))
    right = (steps.reshape(-1)[goal] >= min_path) & (steps.reshape(-1)[goal] <= max_path)
    swap = rng.random(num) < 0.5  # so that neither of them is always the one at a dead end
    start, goal = np.where(swap, goal, start), np.where(swap, start, goal)
    cells[start[right]], cells[goal[right]] = Cell.START, Cell.GOAL
    return grids[right]


_UNSEEN, _BLOCKED = -1, -2  # in place of distances


def _distances(grids: Grids, origins: NDArray[np.intp]) -> NDArray[np.int32]:
    """Steps (N, H, W) from each grid's origin, a flat index (N,) into all of them. The borders must be walls."""
    width = grids.shape[2]
    distance = np.where(grids == Cell.WALL, np.int32(_BLOCKED), np.int32(_UNSEEN)).reshape(-1)
    distance[origins] = num_steps = 0
    frontier = origins
    while frontier.size:
        num_steps += 1
        reached = []
        for step in (-width, -1, 1, width):  # one direction after another, so that no cell is reached twice
            ahead = frontier + step
            ahead = ahead[distance[ahead] == _UNSEEN]
            distance[ahead] = num_steps
            reached.append(ahead)
        frontier = np.concatenate(reached)
    return distance.reshape(grids.shape)


def shortest_paths(questions: Grids) -> Grids:
    """Answers (N, H, W): a shortest path marked in every maze, by breadth-first search, all mazes at once.

    Loops, open rooms and open borders are fine; marks already there count as floor. Among several shortest
    paths it is the one that, from S on, goes up where it can, else left, right, down. Raises DataError, with
    the maze's number, where there is not exactly one S and one G or no path between them.
    """
    padded = np.pad(questions, ((0, 0), (1, 1), (1, 1)))  # a ring of walls
    answers = np.where(padded == Cell.PATH, np.uint8(Cell.FLOOR), padded)
    cells = answers.reshape(-1)  # a view
    starts, goals = _find(answers, Cell.START), _find(answers, Cell.GOAL)
    steps = np.array([-1, 0, 0, 1]) * answers.shape[2] + np.array([0, -1, 1, 0])

    distance = _distances(answers, goals).reshape(-1)
    for index in np.flatnonzero(distance[starts] == _UNSEEN):
        raise DataError(f"Maze {index} (from 0) has no path from S to G; open a wall or leave it out.")

    here = starts
    while (here := here[distance[here] > 1]).size:
        closer = distance[here[:, None] + steps] == distance[here][:, None] - 1  # (walkers, 4)
        here = here + steps[closer.argmax(axis=1)]
        cells[here] = Cell.PATH
    return answers[:, 1:-1, 1:-1].copy()


def _find(grids: Grids, cell: Cell) -> NDArray[np.intp]:
    """The flat index (N,) of the one such cell of each maze."""
    counts = (grids == cell).sum(axis=(1, 2))
    for index in np.flatnonzero(counts != 1):
        name = ALPHABET[cell]
        raise DataError(f"Maze {index} (from 0) has {counts[index]} cells {name}; give it exactly one.")
    return np.flatnonzero(grids == cell)


def augment(questions: Grids, answers: Grids, rng: np.random.Generator) -> tuple[Grids, Grids]:
    """Each square maze under one of its 8 symmetries, drawn at random, the same for question and answer."""
    pairs = np.stack([questions, answers], axis=1)  # (N, 2, H, W)
    symmetry = rng.integers(8, size=len(pairs))
    for k in range(8):
        pairs[symmetry == k] = _turn(pairs[symmetry == k], k)
    return pairs[:, 0], pairs[:, 1]


def fingerprints(questions: Grids) -> NDArray[np.uint64]:
    """A key (N,) for each square maze, the same for all its 8 symmetric copies.

    It is the least of 8 random projections modulo 2⁶⁴. Unrelated mazes share one with a chance near 2⁻⁵⁸, so
    sets kept apart by keys are apart, and at worst a maze is left out for nothing.
    """
    height, width = questions.shape[1:]
    # Raw bits, because they are what numpy promises never to change.
    weights = np.random.PCG64(0).random_raw(height * width).reshape(height, width)
    # Turning the weights instead of the mazes gives the same 8 numbers in another order.
    turned = np.stack([_turn(weights, k).reshape(-1) for k in range(8)], axis=1)  # (H·W, 8)
    return (questions.reshape(len(questions), height * width).astype(np.uint64) @ turned).min(axis=1)


def _turn(grids: NDArray[Any], k: int) -> NDArray[Any]:
    """Symmetry ``k`` of 8 of square grids (..., H, W): ``k % 4`` quarter turns, transposed from 4 up."""
    height, width = grids.shape[-2:]
    if height != width:
        raise DataError(f"Mazes of {height} x {width} cells cannot be turned; give square ones.")
    grids = np.rot90(grids, k % 4, axes=(-2, -1))
    return grids if k < 4 else grids.swapaxes(-2, -1)


def render(grid: Grid) -> str:
    """A grid (H, W) as text, one line per row, without a final newline."""
    return "\n".join("".join(ALPHABET[cell] for cell in row) for row in grid)


def parse(text: str, *, source: str = "<text>", answers: bool = False) -> Grid:
    """The one maze (H, W) in a text, with path marks allowed only if ``answers``.

    Blank lines around it do not matter. Whatever is malformed raises a DataError that names source,
    line and column (both from 1) and what to do.
    """
    first, *more = _split(text, source)
    for (number, _), *_ in more:
        raise DataError(f"{source}, line {number}, column 1: a second maze begins; give one at a time.")
    return _parse(first, source, answers)


def read(path: str | os.PathLike[str], *, answers: bool = False) -> list[Grid]:
    """All mazes of a text file, of any sizes, separated by blank lines. Raises DataError like ``parse``."""
    return parse_all(_text(path), source=str(path), answers=answers)


def read_located(path: str | os.PathLike[str]) -> list[LocatedGrid]:
    """All questions of a text file, or of a csv, each with the line where it begins."""
    if Path(path).suffix == ".csv":
        return [
            LocatedGrid(question, rows.place(row))
            for rows, questions, _ in _tables(path, "train")
            for row, question in enumerate(questions)
        ]
    return parse_located(_text(path), source=str(path))


def _text(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with an invisible mark
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a text file of mazes.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as plain text.") from error


def parse_all(text: str, *, source: str = "<text>", answers: bool = False) -> list[Grid]:
    """All mazes of a text, of any sizes, separated by blank lines."""
    return [_parse(lines, source, answers) for lines in _split(text, source)]


def parse_located(text: str, *, source: str = "<text>") -> list[LocatedGrid]:
    """All questions of a text, each with the line where it begins."""
    return [
        LocatedGrid(_parse(lines, source, answers=False), f"{source}, line {lines[0][0]}")
        for lines in _split(text, source)
    ]


def check(question: Grid) -> None:
    """Raise a DataError for a question (H, W) without a path from S to G, or without exactly one of each."""
    grids = np.pad(question, 1)[None]
    (start,), goal = _find(grids, Cell.START), _find(grids, Cell.GOAL)
    if _distances(grids, goal).reshape(-1)[start] == _UNSEEN:
        raise DataError("this maze has no path from S to G; open a wall.")


def write(path: str | os.PathLike[str], grids: Iterable[Grid]) -> None:
    """Write grids (H, W) as text that ``read`` takes back. The file appears whole or not at all."""
    text = "\n\n".join(map(render, grids)) + "\n"
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _split(text: str, source: str) -> list[list[tuple[int, str]]]:
    """The runs of numbered lines between blank lines; at least one."""
    numbered = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
    mazes = [list(run) for filled, run in groupby(numbered, lambda line: bool(line[1].strip())) if filled]
    if not mazes:
        raise DataError(f"{source}, line 1, column 1: there is no maze; draw one with '#', spaces, S and G.")
    return mazes


def _parse(lines: list[tuple[int, str]], source: str, answers: bool) -> Grid:
    first, width = lines[0][0], len(lines[0][1])

    def fault(row: int, column: int, what: str) -> DataError:
        return DataError(f"{source}, line {first + row}, column {column + 1}: {what}.")

    for row, (_, line) in enumerate(lines):
        for column, character in enumerate(line):
            if character not in ALPHABET[: None if answers else Cell.PATH]:
                known = "'#' for wall, a space for floor, 'S', 'G' and, only in an answer, 'o' for the path"
                raise fault(row, column, f"unexpected character {character!r}; write {known}")
        if len(line) != width:
            what = f"this line has {len(line)} characters and the first {width}; make all lines equally long"
            raise fault(row, min(len(line), width), what)
    if min(len(lines), width) < 3:
        raise fault(0, 0, f"a maze of {len(lines)} x {width} cells has no inside; draw at least 3 x 3")
    grid = np.array([[ALPHABET.index(character) for character in line] for _, line in lines], np.uint8)
    holes = grid != Cell.WALL
    holes[1:-1, 1:-1] = False
    for row, column in np.argwhere(holes):
        raise fault(row, column, "the border is open; close it with '#'")
    for cell in (Cell.START, Cell.GOAL):
        places = np.argwhere(grid == cell)
        if not len(places):
            raise fault(0, 0, f"this maze has no '{ALPHABET[cell]}'; write one on a floor cell")
        for row, column in places[1:]:
            raise fault(row, column, f"this is a second '{ALPHABET[cell]}'; keep only one")
    return grid


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is true of an answer; as a string, one sentence.

    Either ``fault`` says what is wrong, or there are the steps from S to G on this path and on the shortest.
    """

    fault: str | None = None
    length: int | None = None
    shortest: int | None = None

    @property
    def is_path(self) -> bool:
        return self.fault is None

    @property
    def is_shortest(self) -> bool:
        return self.is_path and self.length == self.shortest

    def __str__(self) -> str:
        if not self.is_path:
            return f"wrong: the answer {self.fault}"
        path = f"verified: a path of {self.length} step{'' if self.length == 1 else 's'}"
        return f"{path}, the shortest" if self.is_shortest else f"{path}; the shortest has {self.shortest}"


def verdict(question: Grid, answer: Grid) -> Verdict:
    """Judge an ``answer`` (H, W) to a ``question`` (H, W); of several shortest paths, any is right.

    An answer is a path if it changes nothing but floor into marks, and S, marks and G form one line that
    never branches or touches itself, so that there is one way to walk it. Raises DataError for a question
    without exactly one S and one G.
    """
    if answer.shape != question.shape:
        return Verdict(fault=f"has the shape {answer.shape} and the maze {question.shape}")
    # The ring keeps the walk inside, and makes rows and columns count from 1 as in the text.
    asked, given = np.pad(question, 1), np.pad(answer, 1).reshape(-1)
    (here,), (goal,) = (_find(asked[None], cell).tolist() for cell in (Cell.START, Cell.GOAL))
    width, asked, marked = asked.shape[1], asked.reshape(-1), given == Cell.PATH

    def fault(what: str, index: int | np.intp) -> Verdict:
        return Verdict(fault=f"{what} at line {index // width}, column {index % width}")

    for index in np.flatnonzero(marked & (asked == Cell.WALL)):
        return fault("walks through a wall", index)
    for index in np.flatnonzero((given != asked) & ~(marked & (asked == Cell.FLOOR))):
        return fault("changes the maze", index)
    marked[goal] = True
    length = 0
    while here != goal:
        onward = [here + step for step in (-width, -1, 1, width) if marked[here + step]]
        if len(onward) != 1:
            what = "branches or touches itself" if onward else "does not reach the goal but ends"
            return fault(what, here)
        here = onward[0]
        marked[here] = False  # what was walked
        length += 1
    for index in np.flatnonzero(marked):
        return fault("marks a cell off its path", index)
    shortest = int((shortest_paths(question[None]) == Cell.PATH).sum()) + 1
    return Verdict(length=length, shortest=shortest)


def exact(answers: Grids, predictions: Grids) -> NDArray[np.bool_]:
    """Whether each prediction (N, H, W) is its answer in every cell."""
    return np.asarray((answers == predictions).all(axis=(1, 2)))


def valid_and_shortest(questions: Grids, predictions: Grids) -> NDArray[np.bool_]:
    """Whether each prediction (N, H, W) is its question with a shortest path marked; of several ones, any is right.

    The same as ``verdict(...).is_shortest``, for whole batches. Raises DataError for questions without exactly one S and one G.
    """
    if questions.shape != predictions.shape:
        shapes = f"{questions.shape} and {predictions.shape}"
        raise DataError(f"Questions and predictions have shapes {shapes}; give both as one (N, H, W).")
    asked = np.pad(questions, ((0, 0), (1, 1), (1, 1)))
    marked = np.pad(predictions, ((0, 0), (1, 1), (1, 1))) == Cell.PATH
    starts, goals = _find(asked, Cell.START), _find(asked, Cell.GOAL)
    changed = (predictions != questions) & ~((predictions == Cell.PATH) & (questions == Cell.FLOOR))
    on_line = marked | (asked == Cell.START) | (asked == Cell.GOAL)
    line = np.where(on_line, np.uint8(Cell.FLOOR), np.uint8(Cell.WALL))
    shortest, steps = (_distances(grids, goals).reshape(-1)[starts] for grids in (asked, line))
    # S and G are joined by marks, and there is none to spare: then they are one line, in order.
    whole = (steps > 0) & (steps == shortest) & (marked.sum(axis=(1, 2)) == steps - 1)
    return np.asarray(whole & ~changed.any(axis=(1, 2)))


def read_table(source: str | os.PathLike[str], split: str = "train") -> Puzzles:
    """Read a csv in the format of Maze-Hard: ``source,question,answer,rating``, square grids row by row in the five characters.

    Parameters
    ----------
    source
        A path, or a hub dataset ``OWNER/NAME``, such as sapientinc/maze-30x30-hard-1k, of which ``SPLIT.csv`` is read.

    Raises
    ------
    DataError
        With file and line, for whatever is malformed and for answers that are no shortest path.
    """
    parts = [(questions, answers, rows.ratings) for rows, questions, answers in _tables(source, split)]
    questions, answers, ratings = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Puzzles(kind="maze", questions=questions, answers=answers, ratings=ratings)


def _tables(source: str | os.PathLike[str], split: str) -> Iterator[tuple[Rows, Grids, Grids]]:
    """Rows of a csv with their questions and answers (N, size, size), checked."""
    squares = [size**2 for size in range(3, 256)]
    for rows in read_csv(source, split, num_cells=squares, codes={c: i for i, c in enumerate(ALPHABET)}):
        size = int(rows.questions.shape[1] ** 0.5)
        questions, answers = (grids.reshape(-1, size, size) for grids in (rows.questions, rows.answers))
        for cell in (Cell.START, Cell.GOAL):
            for row in np.flatnonzero((questions == cell).sum(axis=(1, 2)) != 1):
                raise rows.fault(row, f"the question has not exactly one '{ALPHABET[cell]}'; correct it.")
        for row in np.flatnonzero((questions == Cell.PATH).any(axis=(1, 2))):
            raise rows.fault(row, "the question marks a path; write ' ' for its 'o'.")
        for row in np.flatnonzero(~valid_and_shortest(questions, answers)):
            raise rows.fault(
                row, f"the answer is no shortest path ({_judge(questions[row], answers[row])}); correct it."
            )
        yield rows, questions, answers


def _judge(question: Grid, answer: Grid) -> str:
    try:
        return str(verdict(question, answer))
    except DataError:
        return "there is no path from S to G"
