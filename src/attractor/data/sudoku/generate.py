"""Generate Sudokus with one solution: random solved grids lose clues one after another, many grids in parallel."""

import numpy as np
from numpy.typing import NDArray

from attractor.data.puzzle import Advance, PuzzleSet
from attractor.data.sudoku.rules import Grids, require_size
from attractor.data.sudoku.solver import candidates, search
from attractor.data.sudoku.symmetry import Seen, augment
from attractor.errors import ConfigError

_BATCH = 256  # puzzles generated at a time; a change would change the puzzles of a seed
_PATIENCE = 8  # batches in a row without a new puzzle after which generation stops


def generate(
    num: int,
    *,
    size: int,
    seed: int,
    clues: int | None = None,
    exclude: PuzzleSet | None = None,
    advance: Advance = lambda num: None,
) -> PuzzleSet:
    """Return puzzles with exactly one solution. None is a symmetric copy of another.

    Solved grids come from random guesses, and clues are removed in a random order, so puzzles are not equally likely.

    Parameters
    ----------
    num, seed
        The number of puzzles, from 0 up, and the seed. The same settings give the same puzzles on every platform; with
        one seed, fewer puzzles are the first of more.
    size
        4 (boxes of 2 x 2), 6 (2 rows x 3 columns) or 9 (3 x 3).
    clues
        The number of given digits. By default puzzles are minimal: without any one clue, several solutions would exist.
    exclude
        Puzzles whose symmetric copies are not returned, such as the training set for a test set.

    Raises
    ------
    ConfigError
        For invalid settings, or if too few puzzles are found.
    """
    require_size(size)
    for name, value in (("num", num), ("seed", seed)):
        if value < 0:
            raise ConfigError(f"generate({name}={value!r}): give a whole number from 0 up.")
    if clues is not None and not 1 <= clues <= size**2:
        raise ConfigError(f"generate(clues={clues!r}): give a number of clues from 1 to {size**2}.")
    rng, seen = np.random.Generator(np.random.PCG64(seed)), Seen()
    if exclude is not None and exclude.size == size:
        seen.add(exclude.questions, exclude.answers)
    questions, answers = ([np.empty((0, size, size), np.uint8)] for _ in range(2))
    num_found = num_failed_batches = 0
    while num_found < num:
        solved = _solved_grids(_BATCH, size, rng)
        reduced = _remove_clues(solved, size, clues, rng)
        valid = np.flatnonzero((reduced > 0).sum(axis=(1, 2)) == clues) if clues is not None else np.arange(_BATCH)
        new = valid[seen.add(reduced[valid], solved[valid])][: num - num_found]
        questions.append(reduced[new])
        answers.append(solved[new])
        num_found += len(new)
        num_failed_batches = 0 if len(new) else num_failed_batches + 1
        if num_failed_batches == _PATIENCE:
            what = "minimal puzzles" if clues is None else f"puzzles with {clues} clues"
            raise ConfigError(
                f"Only {num_found} of {num} different {what} of size {size} were found before {_PATIENCE * _BATCH} draws "
                "in a row gave no new one; ask for fewer, for more clues or for a larger size."
            )
        advance(len(new))
    return PuzzleSet(kind="sudoku", questions=np.concatenate(questions), answers=np.concatenate(answers))


def _solved_grids(num: int, size: int, rng: np.random.Generator) -> Grids:
    """Return solved grids (num, size, size): random guesses, then a random symmetry."""
    found = search(candidates(np.zeros((num, size, size), np.uint8)), limit=1, rng=rng)
    grids = found.first.reshape(num, size, size)
    return augment(grids, grids, rng)[0]


def _remove_clues(solved: Grids, size: int, clues: int | None, rng: np.random.Generator) -> Grids:
    """Empty the cells of each grid in a random order, unless a second solution would appear or ``clues`` are left."""
    num = len(solved)
    states = candidates(solved)
    bits = states.copy()
    every = np.uint16((1 << size) - 1)
    order = rng.random((num, size**2)).argsort(axis=1)
    num_clues = np.full(num, size**2)
    for cell in order.T:
        which = np.flatnonzero(num_clues > (clues or 0))
        places = cell[which], which
        # The solution was unique before, so every second solution has another digit in this cell.
        other = states[:, which]
        other[cell[which], np.arange(len(which))] = every & ~bits[places]
        unique = search(other, limit=1).counts == 0
        states[cell[which[unique]], which[unique]] = every
        num_clues[which[unique]] -= 1
    given: NDArray[np.bool_] = (states == bits).T.reshape(solved.shape)
    return np.where(given, solved, np.uint8(0))
