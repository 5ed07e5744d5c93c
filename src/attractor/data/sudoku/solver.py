"""An exact solver for many Sudokus in parallel: bit sets of candidates, singles, and a depth-first search.

A state is one uint16 of candidates per cell. States are columns, (cells, states), so that every NumPy operation
runs along many states. One puzzle costs milliseconds, and thousands cost little more.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attractor.data.sudoku.rules import BOXES, Grid, Grids, require_grids, unit_name, units
from attractor.errors import DataError

States = NDArray[np.uint16]  # (cells, M)

_POOL = 256, 2048  # the least and the most states that are processed in parallel
MAX_GUESSES = 50_000  # half a second; four notoriously hard puzzles and 300 generated ones needed 348 at most
_NUM_BITS = np.array([bin(m).count("1") for m in range(1 << 9)], np.uint8)


def solve(question: Grid) -> Grid:
    """Return the unique solution (size, size) of a question. Raises DataError like :func:`check`."""
    return _solved(question)


def check(question: Grid) -> None:
    """Raise a DataError for a question that repeats a digit, or has no or several solutions.

    A question that is not decided after 50,000 guesses, half a second, is refused too, because it could take hours.
    """
    _solved(question)


def count_solutions(question: Grid, limit: int = 2) -> int:
    """Return the number of solutions of a question (size, size), at most ``limit``."""
    require_grids(question[None], "a question")
    return int(search(candidates(question[None]), limit=limit).counts[0])


def _solved(question: Grid) -> Grid:
    size = require_grids(question[None], "a question")
    for index, cells in enumerate(units(size)):
        digits, counts = np.unique(question.reshape(-1)[cells], return_counts=True)
        for digit in digits[(counts > 1) & (digits > 0)]:
            raise DataError(f"this puzzle has the digit {digit} twice in {unit_name(index, size)}; correct it.")
    found = search(candidates(question[None]), limit=2, max_guesses=MAX_GUESSES)
    if found.cut:
        more = "a hundred times what hard puzzles with one solution need"
        raise DataError(f"this puzzle is not decided by {MAX_GUESSES:,} guesses, {more}; correct its clues.")
    if found.counts[0] != 1:
        what = "several solutions; add clues" if found.counts[0] else "no solution; correct its clues"
        raise DataError(f"this puzzle has {what}.")
    return found.first[0].reshape(size, size)


def deduce(questions: Grids) -> tuple[Grids, NDArray[np.bool_]]:
    """Fill in digits that are the only one of their cell, or have one place in a unit, until no more follow.

    Returns new grids (N, size, size), and for each whether nothing rules out a solution, (N,).
    """
    require_grids(questions)
    states, possible, changed = candidates(questions), np.ones(len(questions), np.bool_), len(questions) > 0
    while changed:
        after, alive = _propagate(states, questions.shape[1])
        possible &= alive
        changed, states = bool((after != states).any()), after
    single = (states != 0) & ((states & (states - np.uint16(1))) == 0)
    digits = np.where(single, np.log2(np.where(single, states, 1)).astype(np.uint8) + 1, 0)
    return digits.T.reshape(questions.shape).astype(np.uint8), possible


def candidates(questions: Grids) -> States:
    """Return states (cells, N): a clue has its digit as the only candidate, a blank has all digits."""
    size = questions.shape[1]
    bits = np.array([(1 << size) - 1, *(1 << d for d in range(size))], np.uint16)
    return np.ascontiguousarray(bits[questions.reshape(len(questions), -1)].T)


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of a search.

    ``counts`` (N,) are the numbers of solutions up to the limit; ``first`` (N, cells) is the first solution found, or
    zeros. With ``cut``, a count may be too small, because the limit of guesses was reached.
    """

    counts: NDArray[np.int64]
    first: NDArray[np.uint8]
    cut: bool


def search(roots: States, *, limit: int, rng: np.random.Generator | None = None, max_guesses: float = np.inf) -> Found:
    """Count the solutions of every state (cells, N), each up to ``limit``. With ``rng``, guesses are random."""
    size, num = int(len(roots) ** 0.5), roots.shape[1]
    counts, first = np.zeros(num, np.int64), np.zeros((num, len(roots)), np.uint8)
    pool_size = min(max(num, _POOL[0]), _POOL[1])
    starts = range(0, num, pool_size)
    stack = [(roots[:, i : i + pool_size], np.arange(i, min(i + pool_size, num))) for i in reversed(starts)]
    states, owners, num_guesses = roots[:, :0], np.arange(0), 0
    while (stack or len(owners)) and num_guesses <= max_guesses:
        while stack and len(owners) < pool_size:
            more, more_owners = stack.pop()
            states, owners = np.concatenate([states, more], axis=1), np.concatenate([owners, more_owners])
        after, alive = _propagate(states, size)
        alive &= counts[owners] < limit
        changed = (after != states).any(axis=0)
        single = (after & (after - np.uint16(1))) == 0
        complete = alive & ~changed & single.all(axis=0)
        if complete.any():
            solved = owners[complete]
            counts += np.bincount(solved, minlength=num)
            new = first[solved, 0] == 0
            first[solved[new]] = np.log2(after[:, complete][:, new]).T.astype(np.uint8) + 1
        stuck = alive & ~changed & ~complete
        if stuck.any():
            yes, no = _branch(after[:, stuck], rng)
            stack += [(no, owners[stuck]), (yes, owners[stuck])]
            num_guesses += int(stuck.sum())
        active = alive & changed
        states, owners = after[:, active], owners[active]
    return Found(
        counts=np.minimum(counts, limit), first=first, cut=num_guesses > max_guesses and bool((counts < limit).any())
    )


def _propagate(states: States, size: int) -> tuple[States, NDArray[np.bool_]]:
    """Remove the digits of solved cells from their units, and set digits that have one place left.

    Returns the new states, and which of them can still have a solution.
    """
    height, width = BOXES[size]
    every, one = np.uint16((1 << size) - 1), np.uint16(1)
    num = states.shape[1]
    lines = states.reshape(size, size, num)

    def boxes(grid: States) -> States:  # (bands, rows, stacks, columns, M)
        return grid.reshape(size // height, height, size // width, width, num)

    def spread(rows: States, columns: States, of_boxes: States) -> States:
        """Return for each cell (size, size, M) the union of the values of its row, column and box."""
        both = rows[:, None] | columns[None, :]
        both_boxes = boxes(both)
        both_boxes |= of_boxes[:, None, :, None]
        return both

    alone = np.where((lines & (lines - one)) == 0, lines, np.uint16(0))
    taken = spread(
        np.bitwise_or.reduce(alone, axis=1),
        np.bitwise_or.reduce(alone, axis=0),
        np.bitwise_or.reduce(boxes(alone), axis=(1, 3)),
    )
    lines = (lines & ~taken) | alone
    in_boxes = boxes(lines)
    box_cells = [in_boxes[:, r, :, c] for r in range(height) for c in range(width)]
    seen, alive = [], np.ones(num, np.bool_)
    for cells in ([lines[:, i] for i in range(size)], [lines[i] for i in range(size)], box_cells):
        once, twice = cells[0].copy(), np.zeros_like(cells[0])
        for cell in cells[1:]:
            twice |= once & cell
            once |= cell
        alive &= (once == every).all(axis=tuple(range(once.ndim - 1)))  # otherwise a digit has no place left
        seen.append(once & ~twice)
    only = lines & spread(*seen)
    lines = np.where(only != 0, only, lines)
    alive &= ((only & (only - one)) == 0).all(axis=(0, 1))  # otherwise a cell is the only place of two digits
    alive &= (lines != 0).all(axis=(0, 1))
    return lines.reshape(size * size, num), alive


def _branch(states: States, rng: np.random.Generator | None) -> tuple[States, States]:
    """Return states in which one open cell has one of its candidates, and states without that candidate.

    With ``rng``, the cell is a random one with the fewest candidates. Otherwise it is such a cell, or a place of a
    digit that has even fewer places in a row, column or box: this finds contradictions such as three digits for two
    cells of a column early.
    """
    size, column = int(len(states) ** 0.5), np.arange(states.shape[1])
    bits = np.uint16(1) << np.arange(size, dtype=np.uint16)
    open_cells = _NUM_BITS[states].astype(np.float32)
    open_cells[open_cells < 2] = np.inf
    if rng is not None:
        open_cells += rng.random(open_cells.shape, np.float32)
    cell = open_cells.argmin(axis=0)
    mask = states[cell, column]
    bit = mask & -mask.astype(np.int16).view(np.uint16)
    if rng is not None:
        weight = np.where(mask[:, None] & bits, rng.random((len(mask), size)), -1.0)
        bit = bits[weight.argmax(axis=1)]
    elif (wide := np.flatnonzero(_NUM_BITS[mask] > 2)).size:
        cells = units(size)
        is_place = (states[cells[:, :, None], wide] & bits[:, None, None, None]) != 0  # (digits, units, cells, M)
        num_places = is_place.sum(axis=2, dtype=np.uint8).reshape(-1, len(wide))
        num_places[num_places < 2] = 255
        digit, unit = np.divmod(num_places.argmin(axis=0), len(cells))
        fewer = num_places.min(axis=0) < _NUM_BITS[mask[wide]]
        place = is_place[digit, unit, :, np.arange(len(wide))].argmax(axis=1)
        cell[wide[fewer]], bit[wide[fewer]] = cells[unit, place][fewer], bits[digit[fewer]]
        mask = states[cell, column]
    yes, no = states.copy(), states.copy()
    yes[cell, column], no[cell, column] = bit, mask & ~bit
    return yes, no
