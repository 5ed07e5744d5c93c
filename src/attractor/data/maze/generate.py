"""Generate mazes: perfect mazes, those of Maze-Unique, and mazes of random walls."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.data.maze.paths import distances, shortest_paths
from attractor.data.maze.rules import Cell, Grids
from attractor.data.maze.symmetry import fingerprints
from attractor.data.puzzle import Advance, PuzzleSet
from attractor.errors import ConfigError

_BATCH = 256  # mazes generated at a time; a change would change the mazes of a seed
_WALLS_BATCH = 2048  # the same for random walls, most of which are rejected
_ATTEMPTS = 200  # starts tried in a maze of Maze-Unique, as in EqR's code
_PATIENCE = 8  # batches in a row without a new maze after which generation stops


def generate(
    num: int,
    size: int,
    *,
    seed: int,
    corners: bool = False,
    dfs: bool = False,
    min_path: int = 1,
    max_path: int | None = None,
    exclude: PuzzleSet | None = None,
    advance: Advance = lambda num: None,
) -> PuzzleSet:
    """Return perfect mazes, with one path between any two cells. None is a rotation or reflection of another.

    Parameters
    ----------
    num
        The number of mazes, from 0 up. With one seed, fewer mazes are the first of more.
    size
        Height and width in cells, border included: odd and at least 5. A maze has ((size - 1) / 2)² junctions, the
        cells with odd row and column.
    seed
        The same seed, size and exclusion give the same mazes on every platform.
    corners
        Put S and G at the first and the last junction, in opposite corners: paths are longer. By default both are
        random.
    dfs
        Generate by randomised depth-first search: few, long dead ends, and paths of several times the length. By
        default every spanning tree over the junctions is equally likely (Aldous 1990; Broder 1989): many short dead
        ends.
    min_path, max_path
        The fewest and the most steps from S to G.
    exclude
        No symmetric copy of one of these mazes is returned. Give the training set to generate a test set.

    Raises
    ------
    ConfigError
        For invalid settings, or if there are fewer mazes than asked for.
    """
    _require(num, seed, min_path, max_path)
    if size < 5 or size % 2 == 0:
        raise ConfigError(f"generate(size={size!r}): the size of a maze must be an odd number from 5 up.")
    rng = np.random.Generator(np.random.PCG64(seed))

    def candidates() -> Grids:
        grids = _perfect_mazes(_BATCH, size, rng, corners=corners, dfs=dfs)
        if min_path == 1 and max_path is None:
            return grids
        steps = (shortest_paths(grids) == Cell.PATH).sum(axis=(1, 2)) + 1
        return grids[(steps >= min_path) & (steps <= (max_path or size**2))]

    return _collect(num, size, candidates, exclude, advance)


def generate_mixture(
    num: int,
    size: int,
    *,
    seed: int,
    corner_fraction: float = 0.0,
    dfs_fraction: float = 0.0,
    exclude: PuzzleSet | None = None,
    **settings: Any,
) -> PuzzleSet:
    """Return perfect mazes of several distributions, all different up to symmetry.

    A share ``corner_fraction`` has S and G in opposite corners, and a share ``dfs_fraction`` of these comes from
    depth-first search. The other arguments are those of :func:`generate`.
    """
    num_corner = round(corner_fraction * num)
    num_dfs = round(dfs_fraction * num_corner)
    found = generate(0, size, seed=seed)
    for count, corners, dfs in (
        (num_dfs, True, True),
        (num_corner - num_dfs, True, False),
        (num - num_corner, False, False),
    ):
        known = found if exclude is None else found + exclude
        found += generate(count, size, seed=seed, corners=corners, dfs=dfs, exclude=known, **settings)
    return found


def generate_unique(
    num: int,
    size: int = 30,
    *,
    seed: int,
    min_path: int = 100,
    max_path: int = 140,
    exclude: PuzzleSet | None = None,
    advance: Advance = lambda num: None,
) -> PuzzleSet:
    """Return mazes as those of Maze-Unique (EqR, arXiv:2605.21488). None is a rotation or reflection of another.

    Depth-first search makes a perfect maze. With an even ``size`` it fills the grid but the last row and column, which are
    walls. S and G are any two open cells whose distance is a number drawn uniformly from ``min_path`` to ``max_path``.
    Other arguments and errors are those of :func:`generate`.
    """
    _require(num, seed, min_path, max_path)
    if size < 5 or 2 * ((size - 1) // 2) ** 2 - 1 <= min_path:  # open cells of a tree
        raise ConfigError(f"generate_unique(size={size!r}): no path of {min_path} steps fits; give a larger size.")
    rng = np.random.Generator(np.random.PCG64(seed))

    def candidates() -> Grids:
        return _unique_mazes(_BATCH, size, rng, min_path, max_path)

    return _collect(num, size, candidates, exclude, advance)


def generate_walls(
    num: int,
    size: int,
    *,
    seed: int,
    min_path: int = 1,
    max_path: int | None = None,
    floor: float = 0.64,
    exclude: PuzzleSet | None = None,
    advance: Advance = lambda num: None,
) -> PuzzleSet:
    """Return mazes of random walls, with loops and open areas. None is a rotation or reflection of another.

    Every inner cell is floor with the same probability. One of S and G is as far as possible from a random cell; the
    other is a random cell within the bounds from there. Mazes without such a cell are rejected. Other arguments and
    errors are those of :func:`generate`.

    Parameters
    ----------
    size
        Height and width in cells, closed border included: any number from 5 up.
    min_path, max_path
        The fewest and the most steps of a shortest path. The mazes of Maze-Hard have size 30 and more than 110 steps.
    floor
        The probability that a cell is floor. Near 0.64, shortest paths are longest: more walls separate
        the grid, fewer walls leave shortcuts.
    """
    _require(num, seed, min_path, max_path)
    if size < 5:
        raise ConfigError(f"generate_walls(size={size!r}): the size of a maze must be a number from 5 up.")
    if not 0 < floor <= 1:
        raise ConfigError(f"generate_walls(floor={floor!r}): give a share of floor above 0 and up to 1.")
    rng = np.random.Generator(np.random.PCG64(seed))

    def candidates() -> Grids:
        return _wall_mazes(_WALLS_BATCH, size, rng, floor, min_path, max_path or size**2)

    return _collect(num, size, candidates, exclude, advance)


def _require(num: int, seed: int, min_path: int, max_path: int | None) -> None:
    for name, value in (("num", num), ("seed", seed)):
        if value < 0:
            raise ConfigError(f"generate({name}={value!r}): give a whole number from 0 up.")
    if min_path < 1 or (max_path is not None and max_path < min_path):
        raise ConfigError(f"generate(min_path={min_path!r}, max_path={max_path!r}): give bounds from 1 up, in order.")


def _collect(
    num: int, size: int, candidates: Callable[[], Grids], exclude: PuzzleSet | None, advance: Advance
) -> PuzzleSet:
    """Call ``candidates`` until enough questions are found that differ up to symmetry, and solve them."""
    seen = set() if exclude is None else set(fingerprints(exclude.questions).tolist())
    questions, num_found, num_failed_batches = [np.empty((0, size, size), np.uint8)], 0, 0
    while num_found < num:
        grids = candidates()
        fresh = []
        for i, key in enumerate(fingerprints(grids).tolist()):
            if key not in seen:
                seen.add(key)
                fresh.append(i)
        fresh = fresh[: num - num_found]
        questions.append(grids[fresh])
        num_found += len(fresh)
        num_failed_batches = 0 if fresh else num_failed_batches + 1
        if num_failed_batches == _PATIENCE:
            raise ConfigError(
                f"Only {num_found} of {num} different mazes of size {size} were found before draws "
                "merely repeated them or excluded ones, or had other paths; ask for fewer, for a larger size or for wider bounds."
            )
        advance(len(fresh))
    answers = [shortest_paths(part) for part in questions]
    return PuzzleSet(kind="maze", questions=np.concatenate(questions), answers=np.concatenate(answers))


def _perfect_mazes(num: int, size: int, rng: np.random.Generator, *, corners: bool, dfs: bool) -> Grids:
    """Return questions (num, size, size). All mazes are carved in parallel."""
    width = size + 2  # a second border, so that no step leaves the array
    grids = np.full((num, width, width), Cell.WALL, np.uint8)
    junctions = np.arange(width**2).reshape(width, width)[2:-2:2, 2:-2:2].reshape(-1)
    origin = np.arange(num) * width**2
    cells = grids.reshape(-1)  # a view, with one flat index over all mazes
    cells[origin[:, None] + junctions] = Cell.FLOOR
    first = origin + junctions[rng.integers(len(junctions), size=num)]
    steps = np.array([-width, -1, 1, width])
    (_carve_dfs if dfs else _carve_uniform)(cells, first, steps, len(junctions), rng)

    start = rng.integers(len(junctions), size=num)
    goal = rng.integers(len(junctions) - 1, size=num)
    goal += goal >= start  # uniform over all junctions but the start
    if corners:
        start, goal = np.zeros_like(start), np.full_like(goal, len(junctions) - 1)
    cells[origin + junctions[start]] = Cell.START
    cells[origin + junctions[goal]] = Cell.GOAL
    return grids[:, 1:-1, 1:-1]


def _carve_uniform(
    cells: NDArray[np.uint8],
    here: NDArray[np.intp],
    steps: NDArray[np.intp],
    num_junctions: int,
    rng: np.random.Generator,
) -> None:
    """Walk at random between junctions until all are visited. Open the wall before each junction at its first visit."""
    is_junction = cells == Cell.FLOOR
    unvisited = is_junction.copy()
    unvisited[here] = False
    num_left = np.full(len(here), num_junctions - 1)
    while len(here):
        step = steps[rng.integers(4, size=len(here))]
        there = here + 2 * step
        inside = is_junction[there]
        new = unvisited[there]
        cells[(here + step)[new]] = Cell.FLOOR
        unvisited[there[new]] = False
        num_left -= new
        here = np.where(inside, there, here)
        here, num_left = here[num_left > 0], num_left[num_left > 0]


def _carve_dfs(
    cells: NDArray[np.uint8],
    here: NDArray[np.intp],
    steps: NDArray[np.intp],
    num_junctions: int,
    rng: np.random.Generator,
) -> None:
    """Depth-first search in random order: go to a random unvisited neighbour, or back if there is none."""
    unvisited = cells == Cell.FLOOR
    came_from = np.empty(cells.shape, np.intp)  # the stacks of all searches
    unvisited[here] = False
    came_from[here] = here
    # Each edge of the spanning tree is used at most twice, and the last one only once.
    for _ in range(2 * num_junctions - 3):
        free = unvisited[here[:, None] + 2 * steps]  # (num, 4)
        moves = free.any(axis=1)
        step = steps[np.where(free, rng.random(free.shape), -1.0).argmax(axis=1)]
        there = here + 2 * step
        cells[(here + step)[moves]] = Cell.FLOOR
        unvisited[there[moves]] = False
        came_from[there[moves]] = here[moves]
        here = np.where(moves, there, came_from[here])


def _unique_mazes(num: int, size: int, rng: np.random.Generator, min_path: int, max_path: int) -> Grids:
    """Return questions (at most num, size, size). Starts are drawn until a cell is as far away as the maze's length."""
    side = size - 1 + size % 2
    grids = np.full((num, size, size), Cell.WALL, np.uint8)
    is_open = _perfect_mazes(num, side, rng, corners=False, dfs=True) != Cell.WALL
    grids[:, :side, :side][is_open] = Cell.FLOOR
    length = rng.integers(min_path, max_path + 1, size=num)
    missing = np.arange(num)
    for _ in range(_ATTEMPTS):
        tried = grids[missing]
        start = _pick(tried == Cell.FLOOR, rng)
        matches = distances(tried, start) == length[missing, None, None]
        goal = _pick(matches, rng)
        has_goal = matches.reshape(-1)[goal]
        cells = tried.reshape(-1)  # a view
        cells[start[has_goal]], cells[goal[has_goal]] = Cell.START, Cell.GOAL
        grids[missing] = tried
        missing = missing[~has_goal]
        if not len(missing):
            break
    return np.delete(grids, missing, axis=0)


def _pick(allowed: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.intp]:
    """Return a random allowed cell of each maze (N, H, W), or any cell if none is allowed, as an index into all mazes."""
    offset = np.arange(len(allowed)) * allowed[0].size
    return np.where(allowed, rng.random(allowed.shape), -1.0).reshape(len(allowed), -1).argmax(axis=1) + offset


def _wall_mazes(num: int, size: int, rng: np.random.Generator, floor: float, min_path: int, max_path: int) -> Grids:
    """Return questions (at most num, size, size) whose shortest path is within the bounds."""
    grids = np.full((num, size, size), Cell.WALL, np.uint8)
    inside = rng.random((num, size - 2, size - 2)) < floor
    grids[:, 1:-1, 1:-1][inside] = Cell.FLOOR
    cells = grids.reshape(-1)  # a view
    offset = np.arange(num) * size**2

    middle = _pick(grids == Cell.FLOOR, rng)
    start = distances(grids, middle).reshape(num, -1).argmax(axis=1) + offset
    steps = distances(grids, start)
    goal = _pick((steps >= min_path) & (steps <= max_path), rng)
    valid = (steps.reshape(-1)[goal] >= min_path) & (steps.reshape(-1)[goal] <= max_path)
    swap = rng.random(num) < 0.5  # so that neither S nor G is always the one at a dead end
    start, goal = np.where(swap, goal, start), np.where(swap, start, goal)
    cells[start[valid]], cells[goal[valid]] = Cell.START, Cell.GOAL
    return grids[valid]
