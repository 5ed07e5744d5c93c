"""Shortest paths, and whether an answer is one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attractor.data.maze.rules import Cell, Grid, Grids, find_cell
from attractor.data.puzzle import Verdict
from attractor.errors import DataError

_UNSEEN, _BLOCKED = -1, -2  # in place of distances


def distances(grids: Grids, origins: NDArray[np.intp]) -> NDArray[np.int32]:
    """Return the steps (N, H, W) from each grid's origin, a flat index (N,) into all grids; negative if unreachable.

    The borders must be walls.
    """
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
    """Return the answers (N, H, W): a shortest path is marked in every maze, by parallel breadth-first search.

    Loops, open areas and open borders are allowed; existing marks count as floor. Among several shortest paths it is
    the one that goes up where it can, from S on, then left, right, down.

    Raises
    ------
    DataError
        If a maze does not have exactly one S and one G, or has no path between them.
    """
    padded = np.pad(questions, ((0, 0), (1, 1), (1, 1)))  # a border of walls
    answers = np.where(padded == Cell.PATH, np.uint8(Cell.FLOOR), padded)
    cells = answers.reshape(-1)  # a view
    starts, goals = find_cell(answers, Cell.START), find_cell(answers, Cell.GOAL)
    steps = np.array([-1, 0, 0, 1]) * answers.shape[2] + np.array([0, -1, 1, 0])

    distance = distances(answers, goals).reshape(-1)
    for index in np.flatnonzero(distance[starts] == _UNSEEN):
        raise DataError(f"Maze {index} (from 0) has no path from S to G; open a wall or leave it out.")

    here = starts
    while (here := here[distance[here] > 1]).size:
        closer = distance[here[:, None] + steps] == distance[here][:, None] - 1  # (N, 4)
        here = here + steps[closer.argmax(axis=1)]
        cells[here] = Cell.PATH
    return answers[:, 1:-1, 1:-1].copy()


def steps_to_goal_mod_3(questions: Grids) -> NDArray[np.int64]:
    """Return the remainder of the steps to G when divided by 3, (N, H, W); -1 for walls and cells without a path to G.

    The distances of neighbouring cells differ by 1, so the remainders tell which neighbour is nearer to G, at any size.
    """
    padded = np.pad(questions, ((0, 0), (1, 1), (1, 1)))  # a border of walls
    steps = distances(padded, find_cell(padded, Cell.GOAL))[:, 1:-1, 1:-1]
    return np.where(steps < 0, -1, steps % 3).astype(np.int64)


def check(question: Grid) -> None:
    """Raise a DataError for a question (H, W) without a path from S to G, or without exactly one S and one G."""
    grids = np.pad(question, 1)[None]
    (start,), goal = find_cell(grids, Cell.START), find_cell(grids, Cell.GOAL)
    if distances(grids, goal).reshape(-1)[start] == _UNSEEN:
        raise DataError("this maze has no path from S to G; open a wall.")


@dataclass(frozen=True, kw_only=True)
class PathVerdict(Verdict):
    """Whether an answer is a shortest path.

    ``length`` and ``shortest`` are the steps from S to G on this path and on a shortest one; None if it is no path.
    """

    length: int | None = None
    shortest: int | None = None

    @property
    def is_path(self) -> bool:
        """Whether the answer is a path, of any length."""
        return self.length is not None


def verdict(question: Grid, answer: Grid) -> PathVerdict:
    """Check an ``answer`` (H, W) to a ``question`` (H, W). Every shortest path is correct.

    An answer is a path if it changes only floor into marks, and S, marks and G form one line that never branches or
    touches itself. Raises DataError for a question without exactly one S and one G.
    """
    length = _walk(question, answer)
    if not isinstance(length, int):
        mistake, cells = length
        return PathVerdict(is_correct=False, message=f"wrong: the answer {mistake}", cells=cells)
    shortest = int((shortest_paths(question[None]) == Cell.PATH).sum()) + 1
    path = f"a path of {length} step{'' if length == 1 else 's'}"
    correct = length == shortest
    long = f"wrong: the answer is {path}, but the shortest has {shortest}"
    message = f"verified: {path}, the shortest" if correct else long
    return PathVerdict(is_correct=correct, message=message, length=length, shortest=shortest)


def _walk(question: Grid, answer: Grid) -> int | tuple[str, tuple[tuple[int, int], ...]]:
    """Return the number of steps of the marked path, or what is wrong with it and the (row, column) of wrong cells."""
    if answer.shape != question.shape:
        return f"has the shape {answer.shape} and the maze {question.shape}", ()
    # The border keeps the walk inside, and makes rows and columns count from 1 as in the text.
    asked, given = np.pad(question, 1), np.pad(answer, 1).reshape(-1)
    (here,), (goal,) = (find_cell(asked[None], cell).tolist() for cell in (Cell.START, Cell.GOAL))
    width, asked, marked = asked.shape[1], asked.reshape(-1), given == Cell.PATH

    def mistake(what: str, cells: Sequence[int]) -> tuple[str, tuple[tuple[int, int], ...]]:
        places = tuple((cell // width - 1, cell % width - 1) for cell in cells)
        return f"{what} at line {places[0][0] + 1}, column {places[0][1] + 1}", places

    for what, wrong in (
        ("walks through a wall", marked & (asked == Cell.WALL)),
        ("changes the maze", (given != asked) & ~(marked & (asked == Cell.FLOOR))),
    ):
        if wrong.any():
            return mistake(what, np.flatnonzero(wrong).tolist())
    marked[goal] = True
    length = 0
    while here != goal:
        neighbours = [here + step for step in (-width, -1, 1, width) if marked[here + step]]
        if len(neighbours) != 1:
            what = "branches or touches itself" if neighbours else "does not reach the goal but ends"
            return mistake(what, [here])
        here = neighbours[0]
        marked[here] = False  # each cell is visited once
        length += 1
    if marked.any():
        return mistake("marks a cell off its path", np.flatnonzero(marked).tolist())
    return length


def valid_and_shortest(questions: Grids, predictions: Grids) -> NDArray[np.bool_]:
    """Return for each prediction (N, H, W) whether it is its question with a shortest path marked, any of them.

    The same as ``verdict(...).is_correct``, for batches. Raises DataError for a question without one S and one G.
    """
    if questions.shape != predictions.shape:
        shapes = f"{questions.shape} and {predictions.shape}"
        raise DataError(f"Questions and predictions have shapes {shapes}; give both as one (N, H, W).")
    asked = np.pad(questions, ((0, 0), (1, 1), (1, 1)))
    marked = np.pad(predictions, ((0, 0), (1, 1), (1, 1))) == Cell.PATH
    starts, goals = find_cell(asked, Cell.START), find_cell(asked, Cell.GOAL)
    changed = (predictions != questions) & ~((predictions == Cell.PATH) & (questions == Cell.FLOOR))
    on_line = marked | (asked == Cell.START) | (asked == Cell.GOAL)
    line = np.where(on_line, np.uint8(Cell.FLOOR), np.uint8(Cell.WALL))
    shortest, steps = (distances(grids, goals).reshape(-1)[starts] for grids in (asked, line))
    # Marks connect S and G in as few steps as possible, and no mark is left over: so they are one line.
    is_path = (steps > 0) & (steps == shortest) & (marked.sum(axis=(1, 2)) == steps - 1)
    return np.asarray(is_path & ~changed.any(axis=(1, 2)))
