"""The symmetries of Sudoku: drawing one at random, and knowing puzzles that are the same up to them.

Digits may be renamed; bands, stacks, the rows of a band and the columns of a stack may be permuted; where boxes are square, the
grid may be transposed. For 9x9 that is 9! times 3,359,232 copies of a puzzle.
"""

from functools import cache
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from attractor.data.puzzles import Puzzles
from attractor.data.sudoku.rules import BOXES, Grids, require_grids, solves
from attractor.data.sudoku.solver import MAX_GUESSES, candidates, search
from attractor.errors import DataError

_CHUNK = 4096  # puzzles of which invariants are computed at once


def augment(questions: Grids, answers: Grids, rng: np.random.Generator) -> tuple[Grids, Grids]:
    """Each puzzle (N, size, size) under a symmetry drawn at random, the same for question and answer."""
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
    """Random orders (num, size) of lines that stay together in groups."""
    groups = rng.random((num, size // group)).argsort(axis=1)
    inside = rng.random((num, size // group, group)).argsort(axis=2)
    return (groups[:, :, None] * group + inside).reshape(num, size)


def canonical(questions: Grids, answers: Grids) -> Grids:
    """The same question (N, size, size) for all symmetric copies of a puzzle, and another one for every other puzzle.

    Of all copies of a solved grid it takes the ones that are least when read row by row, and of these the one whose clues come
    last. The first row is then 1, 2, 3, ..., and which row comes first and how columns are permuted decides all else.

    Raises
    ------
    DataError
        Where an answer does not solve its question.
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
    orders, places = _column_orders(size)  # (K, size): which column comes j-th, and where column c went
    grids = [(grid, clues), (grid.T, clues.T)] if height == width else [(grid, clues)]
    # Row by row below the first: where its digits stand in the first row, which is what they are renamed to.
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
    columns = np.stack(seconds)  # (pairs, size)
    # The second row (pairs, K) as one number, most significant place first, one place after another for the least alone.
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
        # Rows by their first digit within bands, and bands by their first row's: nothing else is least.
        bands = copy[:, 0].reshape(-1, height)
        inside = np.argsort(bands, axis=1) + np.arange(0, size, height)[:, None]
        rows = inside[np.argsort(bands.min(axis=1))].reshape(-1)
        form = copy[rows].tobytes() + (~given[:, orders[k]][rows]).tobytes()
        best = form if best is None or form < best else best
    assert best is not None
    whole, blank = np.frombuffer(best, np.uint8).reshape(2, size, size)
    return np.where(blank, np.uint8(0), whole)


@cache
def _column_orders(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All orders (K, size) of columns that keep stacks together, and their inverses."""
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
    """A number (N,) for each question that all its symmetric copies share, and hardly any other: cheap, and no proof.

    Cells get colours; in four rounds each is mixed with the colours in its row, column and box, and of its own digit.
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
        if height != width:  # where the grid cannot be transposed, rows differ from columns
            columns = _mix(columns)
        in_boxes = colours.reshape(num, size // height, height, size // width, width)
        boxes = np.broadcast_to(in_boxes.sum(axis=(2, 4), keepdims=True), in_boxes.shape).reshape(colours.shape)
        same = np.zeros_like(colours)
        for where in is_digit:
            same += where * (colours * where).sum(axis=(1, 2), keepdims=True)
        colours = _mix(colours + _mix(rows + columns) + _mix(boxes * np.uint64(3)) + _mix(same * np.uint64(5)))
    return np.asarray(_mix(colours).sum(axis=(1, 2)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, modulo 2⁶⁴."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Seen:
    """Puzzles that were met, known again in any symmetric copy. Exact: forms are compared wherever invariants agree.

    Only a question with several solutions has no form of its own, because the form follows from the solution: it is taken for a
    copy of any other such question with its invariant.
    """

    def __init__(self) -> None:
        self._forms: dict[int, dict[bytes, int]] = {}
        self._unformed: dict[int, tuple[Grids, Grids, int]] = {}  # the only one yet of its invariant
        self._num = 0

    def find(self, questions: Grids, answers: Grids) -> NDArray[np.int64]:
        """The number of the equivalent puzzle that was added, or -1, for each puzzle (N,)."""
        found = np.full(len(questions), -1, np.int64)
        for i, key in enumerate(invariants(questions).tolist()):
            if key in self._unformed:
                self._form(key, *self._unformed.pop(key))
            if key in self._forms:
                form = _form(questions[i : i + 1], answers[i : i + 1])
                found[i] = self._forms[key].get(form, -1)
        return found

    def add(self, questions: Grids, answers: Grids) -> NDArray[np.bool_]:
        """Add puzzles one after another; say which (N,) were new."""
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
    """The form of one puzzle (1, size, size), the same for all that have several solutions."""
    found = search(candidates(questions), limit=2, max_guesses=MAX_GUESSES)
    unique = found.counts[0] == 1 and not found.cut
    return canonical(questions, answers).tobytes() if unique else b"several solutions"


def equivalent_pairs(test: Puzzles, train: Puzzles) -> NDArray[np.int64]:
    """Pairs (K, 2): the number of each test puzzle that is a symmetric copy of a training puzzle, and of the first such one."""
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
