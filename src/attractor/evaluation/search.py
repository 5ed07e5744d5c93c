"""Search with a reasoner: guess a digit and evaluate again. The rules, not the reasoner, take wrong guesses back.

A node is a question with guesses. A guess goes into the cell whose second most probable digit is the most probable one;
its other digits are the alternatives, so that the search is complete. What follows from a guess by the rules alone is
filled in, and a guess after which some cell has no digit left is dropped without an evaluation. Of the other nodes, the
one whose guesses are the most probable is evaluated next, from the state of the node before its last guess.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attractor.errors import ConfigError
from attractor.models.reasoning import Reasoner

Grids = NDArray[np.uint8]
Deduce = Callable[[Grids], tuple[Grids, NDArray[np.bool_]]]
DEPTH_BONUS = 1.0  # in nats: a node with one more guess comes first unless it is less probable by this


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found for N puzzles.

    Attributes
    ----------
    answers
        (N, height, W) uint8. Of an unsolved puzzle, the model's last answer.
    solved, impossible
        (N,) bool: whether the answer follows the rules, and whether it is proved that there is none. The others reached
        the limit of evaluations.
    evaluations, guesses
        (N,): evaluations of the update, and guesses. A guess after which the rules fill the grid needs no evaluation.
    probabilities, residual
        (N, height, W, classes) and (N,), of the last evaluation.
    """

    answers: Tensor
    solved: Tensor
    impossible: Tensor
    evaluations: Tensor
    guesses: Tensor
    probabilities: Tensor
    residual: Tensor


@dataclass(order=True)
class _Node:
    cost: float
    num_guesses: int
    question: NDArray[np.uint8] = field(compare=False)  # (height, W), with guesses
    state: Tensor = field(compare=False)
    evaluations: int = field(compare=False)  # before the next guess


@torch.no_grad()
def run_search(
    model: Reasoner,
    questions: Tensor,
    deduce: Deduce,
    *,
    first_depth: int = 32,
    depth: int = 2,
    max_evaluations: int = 2048,
    batch_size: int = 64,
    init_state: Tensor | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> SearchResult:
    """Search for the answers of Sudokus (N, size, size), in which 0 is a blank cell.

    Parameters
    ----------
    deduce
        Fills in what follows by the rules, and tells which grids can still have a solution:
        :func:`attractor.data.sudoku.deduce`.
    first_depth, depth
        Evaluations before the first guess, rounded up to a multiple of ``depth``, and after each guess. The answer is
        checked after every ``depth`` evaluations.
    max_evaluations
        The search gives up on a puzzle that would need more.
    batch_size
        Puzzles that are searched at a time, one node of each.
    init_state
        (N, size, size, state width); by default new ones.
    advance
        Called with the number of puzzles that are finished.

    Raises
    ------
    ConfigError
        For numbers of evaluations that allow none.
    """
    if min(depth, first_depth) < 1 or max_evaluations < depth:
        given = f"depth={depth}, first_depth={first_depth}, max_evaluations={max_evaluations}"
        raise ConfigError(f"search: {given}; give whole numbers from 1 up, and max_evaluations of depth or more.")
    found = _nothing(questions, model.config.num_classes)
    waiting, heaps = iter(range(len(questions))), dict[int, list[_Node]]()
    while True:
        while len(heaps) < batch_size and (new := next(waiting, None)) is not None:
            grid = questions[new].cpu().numpy().astype(np.uint8)
            state = model.init_state(questions[new][None])[0] if init_state is None else init_state[new]
            heaps[new] = [_Node(0.0, 0, grid, state, first_depth)]
        if not heaps:
            return found
        index, nodes = torch.tensor(list(heaps)), [heapq.heappop(heap) for heap in heaps.values()]
        grids = np.stack([node.question for node in nodes])
        output = model(
            torch.from_numpy(grids).long().to(questions.device),
            torch.stack([node.state for node in nodes]),
            depth=depth,
        )
        found.probabilities[index] = output.logits.float().softmax(dim=-1).cpu()
        found.residual[index] = output.solution.residual.float().cpu()
        found.evaluations[index] += depth
        found.guesses[index] += torch.tensor([node.num_guesses > 0 for node in nodes])
        size = grids.shape[-1]
        probs = found.probabilities[index][..., 1 : size + 1]  # a blank is no answer
        answers = np.where(grids > 0, grids, probs.argmax(dim=-1).numpy() + 1).astype(np.uint8)
        right = deduce(answers)[1]
        children = _guess(grids, probs, right, deduce)
        for row, (i, node) in enumerate(zip(index.tolist(), nodes, strict=True)):
            state, heap = output.solution.value[row].clone(), heaps[i]
            if node.evaluations > depth and not right[row]:
                heap.append(_Node(node.cost, 0, node.question, state, node.evaluations - depth))
                children[row] = []
            for loss, grid in children[row]:
                if grid.all():  # complete, and no rule is broken
                    answers[row], right[row] = grid, True
                    found.guesses[i] += 1
                    break
                heapq.heappush(heap, _Node(node.cost + loss - DEPTH_BONUS, node.num_guesses + 1, grid, state, depth))
            found.impossible[i] = not heap and not right[row]
            if right[row] or not heap or found.evaluations[i] + depth > max_evaluations:
                del heaps[i]
                advance(1)
        found.answers[index], found.solved[index] = torch.from_numpy(answers), torch.from_numpy(right)


def _nothing(questions: Tensor, num_classes: int) -> SearchResult:
    """Return the result before the first evaluation."""
    num = len(questions)
    return SearchResult(
        answers=torch.zeros(questions.shape, dtype=torch.uint8),
        solved=torch.zeros(num, dtype=torch.bool),
        impossible=torch.zeros(num, dtype=torch.bool),
        evaluations=torch.zeros(num, dtype=torch.long),
        guesses=torch.zeros(num, dtype=torch.long),
        probabilities=torch.zeros(*questions.shape, num_classes),
        residual=torch.full((num,), torch.inf),
    )


def _guess(
    grids: Grids, probs: Tensor, right: NDArray[np.bool_], deduce: Deduce
) -> list[list[tuple[float, NDArray[np.uint8]]]]:
    """Return for each grid the possible guesses of one cell: minus the log of its probability, and the new grid."""
    size = grids.shape[-1]
    flat = torch.where(torch.from_numpy(grids > 0)[..., None], -1.0, probs).flatten(1, 2)  # (B, cells, digits)
    cells = flat.topk(2, dim=-1).values[..., 1].argmax(dim=1).numpy()
    losses = -probs.flatten(1, 2)[torch.arange(len(grids)), cells].clamp_min(1e-9).log()
    after = np.repeat(grids.reshape(len(grids), 1, -1), size, axis=1)  # (B, digits, cells)
    after[np.arange(len(grids)), :, cells] = np.arange(1, size + 1)
    filled, possible = deduce(after.reshape(-1, size, size))
    possible &= ~np.repeat(right | grids.all(axis=(1, 2)), size)
    children: list[list[tuple[float, NDArray[np.uint8]]]] = [[] for _ in grids]
    for k in np.flatnonzero(possible).tolist():
        children[k // size].append((float(losses[k // size, k % size]), filled[k]))
    return children
