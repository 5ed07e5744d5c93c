"""Generated tasks whose answers need a known number of steps in sequence; ``benchmarks.depth`` says which.

Each function returns, for ``num`` rows of difficulty up to ``limit``, tokens, answers (IGNORED where there is no question)
and the difficulty of each answer, all (num, length).
"""

import itertools
from typing import Any

import numpy as np

from attractor.data import maze as mazes

IGNORED = -100
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def pointers(rng: np.random.Generator, num: int, limit: int, n: int = 12) -> Batch:
    """Chains of at most ``limit`` hops: pairs of a symbol and its successor, then every symbol as a question."""
    order = rng.permuted(np.tile(np.arange(n), (num, 1)), axis=1)
    follows = rng.random((num, n)) < 0.85
    successor, end, hops = (np.zeros((num, n), dtype=np.int64) for _ in range(3))
    for row in range(num):
        length = 0
        for i in range(n - 1, -1, -1):
            symbol = order[row, i]
            is_end = i == n - 1 or not follows[row, i] or length == limit
            length = 0 if is_end else length + 1
            after = symbol if is_end else order[row, i + 1]
            successor[row, symbol], hops[row, symbol] = after, length
            end[row, symbol] = symbol if is_end else end[row, after]
    keys, asked = (rng.permuted(np.tile(np.arange(n), (num, 1)), axis=1) for _ in range(2))
    pairs = np.stack([keys, n + np.take_along_axis(successor, keys, 1)], axis=2).reshape(num, 2 * n)
    nothing = np.full((num, 2 * n), IGNORED)
    return (
        np.concatenate([pairs, 2 * n + asked], axis=1),
        np.concatenate([nothing, np.take_along_axis(end, asked, 1)], axis=1),
        np.concatenate([nothing, np.take_along_axis(hops, asked, 1)], axis=1),
    )


PERMUTATIONS = np.array(list(itertools.permutations(range(5))))
INDEX = {tuple(p): i for i, p in enumerate(PERMUTATIONS)}
GENERATORS = np.array([[1, 0, 2, 3, 4], [1, 2, 3, 4, 0], [4, 0, 1, 2, 3], [0, 1, 2, 4, 3]])


def group(rng: np.random.Generator, num: int, limit: int) -> Batch:
    """Products of ``limit`` permutations, each one of four that generate S5."""
    chosen = rng.integers(len(GENERATORS), size=(num, limit))
    product, answers = np.tile(np.arange(5), (num, 1)), np.zeros((num, limit), dtype=np.int64)
    for t in range(limit):
        product = np.take_along_axis(product, GENERATORS[chosen[:, t]], 1)
        answers[:, t] = [INDEX[tuple(p)] for p in product]
    return chosen, answers, np.tile(np.arange(1, limit + 1), (num, 1))


def addition(rng: np.random.Generator, num: int, limit: int) -> Batch:
    """Sums of numbers of ``limit`` digits, of which half of the pairs make 9, so that carries go far."""
    a, b = rng.integers(10, size=(2, num, limit))
    b = np.where(rng.random(b.shape) < 0.5, 9 - a, b)
    digits, travelled = np.zeros_like(a), np.zeros_like(a)
    carry, far = np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int64)
    for i in range(limit):
        total = a[:, i] + b[:, i] + carry
        digits[:, i], travelled[:, i] = total % 10, far
        far = np.where(total < 10, 0, np.where(a[:, i] + b[:, i] == 9, far + 1, 1))
        carry = total // 10
    tokens = np.stack([a, 10 + b], axis=2).reshape(num, 2 * limit)
    nothing = np.full_like(digits, IGNORED)
    answers, difficulty = (np.stack([nothing, x], axis=2).reshape(num, 2 * limit) for x in (digits, travelled))
    return tokens, answers, difficulty


BAND = np.array([[0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 3, 2], [1, 0, 3, 2]])
LINES = np.concatenate([BAND, BAND[:, [2, 3, 0, 1]]])  # the orders of rows or columns that keep the boxes
SOLVED = np.array([[[0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 3, 2], [3, 2, 1, 0]],
                   [[0, 1, 2, 3], [2, 3, 0, 1], [1, 2, 3, 0], [3, 0, 1, 2]]])  # fmt: skip  # one of each kind
ROW, COLUMN = np.divmod(np.arange(16), 4)
SEES = (
    (ROW[:, None] == ROW)
    | (COLUMN[:, None] == COLUMN)
    | ((ROW // 2 * 2 + COLUMN // 2)[:, None] == ROW // 2 * 2 + COLUMN // 2)
)


def sudoku(rng: np.random.Generator, num: int, limit: int) -> Batch:
    """4 × 4 Sudokus with ``limit`` blanks, twice: as the question, and to be answered where digits follow one by one.

    A digit follows when the digits that its cell sees are all others; the difficulty is the round in which it does.
    """
    grid = SOLVED[rng.integers(2, size=num)]
    rows, columns = (LINES[rng.integers(8, size=num)] for _ in range(2))
    grid = np.take_along_axis(np.take_along_axis(grid, rows[:, :, None], 1), columns[:, None, :], 2)
    grid = np.where((rng.random(num) < 0.5)[:, None, None], grid, grid.swapaxes(1, 2)).reshape(num, 16)
    grid = np.take_along_axis(rng.permuted(np.tile(np.arange(4), (num, 1)), axis=1), grid, 1)
    known = rng.permuted(np.tile(np.arange(16) >= limit, (num, 1)), axis=1)
    question, difficulty = np.where(known, 1 + grid, 0), np.zeros((num, 16), dtype=np.int64)
    for round_ in range(1, limit + 1):
        seen = (SEES[None] & known[:, None, :])[..., None] & (grid[:, None, :, None] == np.arange(4))
        follows = ~known & (seen.any(axis=2).sum(axis=2) == 3)
        difficulty[follows] = round_
        known = known | follows
    answers = np.where(difficulty > 0, grid, IGNORED)
    return _asked_again(question, answers, difficulty)


def maze(rng: np.random.Generator, num: int, limit: int) -> Batch:
    """9 × 9 mazes with paths of up to ``limit`` steps, twice: as the question, and to be answered for every open cell.

    The answer is whether a cell is on the path; the difficulty is the length of the path.
    """
    drawn = mazes.generate(num, 9, seed=int(rng.integers(2**31)), max_path=limit)
    question, solved = (grids.reshape(num, 81).astype(np.int64) for grids in (drawn.questions, drawn.answers))
    is_open = question == mazes.Cell.FLOOR
    is_path = is_open & (solved != question)
    steps = np.broadcast_to(1 + is_path.sum(axis=1, keepdims=True), question.shape)
    return _asked_again(question, np.where(is_open, is_path, IGNORED), steps)


def _asked_again(question: np.ndarray, answers: np.ndarray, difficulty: np.ndarray) -> Batch:
    nothing = np.full_like(answers, IGNORED)
    return (
        np.concatenate([question, question], axis=1),
        np.concatenate([nothing, answers], axis=1),
        np.concatenate([nothing, difficulty], axis=1),
    )


# The function, the limit in training, the limit beyond it, and what the difficulty is.
TASKS: dict[str, tuple[Any, int, int, str]] = {
    "pointers": (pointers, 4, 8, "hops"),
    "group": (group, 16, 32, "factors"),
    "addition": (addition, 8, 16, "places the carry has come"),
    "sudoku": (sudoku, 7, 11, "rounds"),
    "maze": (maze, 12, 24, "steps of the path"),
}
