"""The symmetries of Sudoku: apply a random one, and recognise puzzles that are equal up to symmetry.

Digits can be renamed; bands, stacks, the rows of a band and the columns of a stack can be permuted; with square boxes,
the grid can be transposed. For 9x9 this makes 9! times 3,359,232 copies of a puzzle.
"""

from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from attractor.data.puzzle import PuzzleSet
from attractor.data.sudoku.rules import BOXES, Grids, require_grids, solves
from attractor.data.sudoku.solver import MAX_GUESSES, candidates, search
from attractor.errors import DataError

_CHUNK = 4096  # puzzles whose invariants are computed at a time


def augment(questions: Grids, answers: Grids, rng: np.random.Generator) -> tuple[Grids, Grids]:
    """Apply a random symmetry to each puzzle (N, size, size), the same to question and answer."""
    size, num = require_grids(questions), len(questions)
    height, width = BOXES[size]
    digits = np.zeros((num, size + 1), np.uint8)
    digits[:, 1:] = rng.random((num, size)).argsort(axis=1) + 1
    rows, columns = _lines(num, size, height, rng), _lines(num, size, width, rng)
    cells = rows[:, :, None] * size + columns[:, None, :]
    if height == width:
        turned = rng.random(num) < 0.5
        cells[turned] = cells[turned].swapaxes(1, 2)
    which = np.arange(num)[:, None, None]
    places, names = cells + which * size**2, which * (size + 1)
    question, answer = (digits.take(grids.take(places) + names) for grids in (questions, answers))
    return question, answer


def _lines(num: int, size: int, group: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return random orders (num, size) of lines. The lines of a group stay adjacent."""
    groups = rng.random((num, size // group)).argsort(axis=1)
    inside = rng.random((num, size // group, group)).argsort(axis=2)
    return (groups[:, :, None] * group + inside).reshape(num, size)


def canonical(questions: Grids, answers: Grids) -> Grids:
    """Return the canonical form of each question (N, size, size). Exactly symmetric copies have equal forms.

    It is the copy whose solved grid is lexicographically least, row by row; among equal grids, the one whose clues come
    last. Its first row is 1, 2, 3, ..., so the choice of the first row and the order of the columns determine the rest.

    Raises
    ------
    DataError
        If an answer does not solve its question.
    """
    size = require_grids(questions)
    for wrong in np.flatnonzero(~solves(questions, answers)):
        raise DataError(f"answer {wrong} (from 0) does not solve its question; correct it.")
    forms = np.empty_like(questions)
    for index, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        forms[index] = _least(answer, question > 0, size)
    return forms


def _least(grid: NDArray[np.uint8], clues: NDArray[np.bool_], size: int) -> NDArray[np.uint8]:
    """Return the canonical question of one solved grid with its clues."""
    height, width = BOXES[size]
    orders, places = _column_orders(size)  # (K, size): the column at position j, and the position of column c
    grids = [(grid, clues), (grid.T, clues.T)] if height == width else [(grid, clues)]
    # For each candidate of a first and a second row: the digits of the second, renamed by the first (pairs, size).
    seconds, of = [], []
    for turned, (side, _) in enumerate(grids):
        where = np.empty((size, size + 1), np.intp)
        np.put_along_axis(where, side.astype(np.intp), np.arange(size)[None], axis=1)
        for top in range(size):
            band = top // height * height
            for mate in range(band, band + height):
                if mate != top:
                    seconds.append(where[top][side[mate]])
                    of.append((turned, top))
    columns = np.stack(seconds)
    # Keep the pairs and orders with the least second row, one digit after another.
    pair, order = (index.reshape(-1) for index in np.indices((len(columns), len(orders)), dtype=np.int32))
    for j in range(size):
        digit = places[order, columns[pair, orders[order, j]]]
        least = digit == digit.min()
        pair, order = pair[least], order[least]
    found = {(*of[p], k) for p, k in zip(pair.tolist(), order.tolist(), strict=True)}
    best: bytes | None = None
    for turned, top, k in found:
        side, given = grids[turned]
        names = np.zeros(size + 1, np.uint8)
        names[side[top, orders[k]]] = np.arange(1, size + 1)
        copy = names[side[:, orders[k]]]
        # The least copy has the rows of a band, and the bands, in the order of their first digits.
        bands = copy[:, 0].reshape(-1, height)
        inside = np.argsort(bands, axis=1) + np.arange(0, size, height)[:, None]
        rows = inside[np.argsort(bands.min(axis=1))].reshape(-1)
        form = copy[rows].tobytes() + (~given[:, orders[k]][rows]).tobytes()
        best = form if best is None or form < best else best
    assert best is not None
    solved, blank = np.frombuffer(best, np.uint8).reshape(2, size, size)
    return np.where(blank, np.uint8(0), solved)


@cache
def _column_orders(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return all orders (K, size) of columns in which stacks stay adjacent, and their inverses."""
    width = BOXES[size][1]
    inside = list(permutations(range(width)))
    orders = np.array(
        [
            [stack * width + column for stack, columns in zip(stacks, choice, strict=True) for column in columns]
            for stacks in permutations(range(size // width))
            for choice in product(inside, repeat=size // width)
        ]
    )
    return orders, orders.argsort(axis=1)


def invariants(questions: Grids) -> NDArray[np.uint64]:
    """Return a hash (N,) of each question. Symmetric copies have equal hashes; other puzzles rarely do.

    Cells get colours. In four rounds, each colour is mixed with those of its row, column and box, and of its digit.
    """
    size = require_grids(questions)
    parts = [_invariants(questions[i : i + _CHUNK], size) for i in range(0, len(questions), _CHUNK)]
    return np.concatenate([np.empty(0, np.uint64), *parts])


def _invariants(questions: Grids, size: int) -> NDArray[np.uint64]:
    num = len(questions)
    height, width = BOXES[size]
    clue = questions > 0
    colours = np.where(clue, np.uint64(1), np.uint64(2))
    is_digit = np.stack([questions == d for d in range(1, size + 1)])  # (size, N, size, size)
    for _ in range(4):
        rows, columns = (_mix(colours.sum(axis=axis, keepdims=True)) for axis in (2, 1))
        if height != width:  # the grid cannot be transposed, so rows and columns differ
            columns = _mix(columns)
        in_boxes = colours.reshape(num, size // height, height, size // width, width)
        boxes = np.broadcast_to(in_boxes.sum(axis=(2, 4), keepdims=True), in_boxes.shape).reshape(colours.shape)
        same = np.zeros_like(colours)
        for where in is_digit:
            same += where * (colours * where).sum(axis=(1, 2), keepdims=True)
        colours = _mix(colours + _mix(rows + columns) + _mix(boxes * np.uint64(3)) + _mix(same * np.uint64(5)))
    return np.asarray(_mix(colours).sum(axis=(1, 2)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64, modulo 2⁶⁴."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Seen:
    """A set of puzzles up to symmetry. It is exact: canonical forms are compared where invariants agree.

    A question with several solutions has no canonical form, because the form depends on the solution. It counts as a
    copy of every other such question with its invariant.
    """

    def __init__(self) -> None:
        self._forms: dict[int, dict[bytes, int]] = {}
        self._unformed: dict[int, tuple[Grids, Grids, int]] = {}  # the only puzzle so far with its invariant
        self._num = 0

    def find(self, questions: Grids, answers: Grids) -> NDArray[np.int64]:
        """Return for each puzzle (N,) the index of the equivalent puzzle that was added, or -1."""
        found = np.full(len(questions), -1, np.int64)
        for i, key in enumerate(invariants(questions).tolist()):
            if key in self._unformed:
                self._form(key, *self._unformed.pop(key))
            if key in self._forms:
                form = _form(questions[i : i + 1], answers[i : i + 1])
                found[i] = self._forms[key].get(form, -1)
        return found

    def add(self, questions: Grids, answers: Grids) -> NDArray[np.bool_]:
        """Add puzzles one after another, and return which (N,) were new."""
        new = np.zeros(len(questions), np.bool_)
        for i, key in enumerate(invariants(questions).tolist()):
            one = questions[i : i + 1], answers[i : i + 1], self._num
            self._num += 1
            if key not in self._unformed and key not in self._forms:
                self._unformed[key] = one
                new[i] = True
                continue
            if key in self._unformed:
                self._form(key, *self._unformed.pop(key))
            new[i] = self._form(key, *one)
        return new

    def _form(self, key: int, questions: Grids, answers: Grids, number: int) -> bool:
        form = _form(questions, answers)
        return self._forms.setdefault(key, {}).setdefault(form, number) == number


def _form(questions: Grids, answers: Grids) -> bytes:
    """Return the canonical form of a puzzle (1, size, size), or a constant for a question with several solutions."""
    found = search(candidates(questions), limit=2, max_guesses=MAX_GUESSES)
    unique = found.counts[0] == 1 and not found.cut
    return canonical(questions, answers).tobytes() if unique else b"several solutions"


def equivalent_pairs(test: PuzzleSet, train: PuzzleSet) -> NDArray[np.int64]:
    """Return pairs (K, 2): a test puzzle that is a symmetric copy, and the first training puzzle that it copies."""
    if test.questions.shape[1:] != train.questions.shape[1:]:
        return np.empty((0, 2), np.int64)
    keys_test, keys_train = invariants(test.questions), invariants(train.questions)
    near_test, near_train = (
        np.flatnonzero(np.isin(keys, others)) for keys, others in ((keys_test, keys_train), (keys_train, keys_test))
    )
    seen = Seen()
    seen.add(train.questions[near_train], train.answers[near_train])
    found = seen.find(test.questions[near_test], test.answers[near_test])
    return np.stack([near_test[found >= 0], near_train[found[found >= 0]]], axis=1)
