"""Depth and breadth: many random starts, watched along the way, and one answer chosen among them without knowing the truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.evaluation.puzzles import Reasoner
from attractor.solve import Steps


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """What K starts of N puzzles answered at each of some depths.

    Attributes
    ----------
    depths
        Evaluations from the start.
    answers
        (K, depths, N, height, W) uint8.
    residual
        (K, depths, N).
    """

    depths: tuple[int, ...]
    answers: Tensor
    residual: Tensor

    def lowest_residual(self, breadth: int) -> Tensor:
        """Of the first ``breadth`` starts, take each puzzle's answer with the smallest residual; (depths, N, height, W)."""
        best = self.residual[:breadth].nan_to_num(torch.inf).argmin(dim=0)[None, :, :, None, None]
        return self.answers[:breadth].take_along_dim(best, dim=0)[0]

    def majority(self, breadth: int) -> Tensor:
        """Take the answer that most of the first ``breadth`` starts gave, of equally frequent ones the calmest; shape as above."""
        answers = self.answers[:breadth]
        votes = torch.stack([(answers == one).flatten(3).all(dim=3).sum(dim=0) for one in answers])  # (K, depths, N)
        calm = self.residual[:breadth].nan_to_num(torch.inf).argsort(dim=0, descending=True).argsort(dim=0)
        best = (votes * breadth + calm).argmax(dim=0)[None, :, :, None, None]
        return answers.take_along_dim(best, dim=0)[0]


@torch.no_grad()
def run_restarts(
    model: Reasoner,
    questions: Tensor,
    *,
    depths: Sequence[int],
    breadth: int = 1,
    batch_size: int = 256,
    advance: Callable[[int], None] = lambda n: None,
) -> Restarts:
    """Run ``breadth`` starts of every puzzle (N, height, W) through increasing ``depths``. ``advance`` is told of puzzles done."""
    answers = torch.zeros(breadth, len(depths), *questions.shape, dtype=torch.uint8)
    residual = torch.zeros(breadth, len(depths), len(questions))
    for k in range(breadth):
        for first in range(0, len(questions), batch_size):
            part = slice(first, first + batch_size)
            asked = questions[part]
            state, so_far = model.start(asked), 0
            for row, depth in enumerate(depths):
                output = model(asked, state, stop=Steps(depth - so_far))
                state, so_far = output.solution.value, depth
                answers[k, row, part] = output.logits.argmax(dim=-1).to("cpu", torch.uint8)
                residual[k, row, part] = output.solution.residual.cpu()
            advance(len(asked))
    return Restarts(depths=tuple(depths), answers=answers, residual=residual)


def exact(answers: Tensor, truth: Tensor) -> Tensor:
    """Return which answers (..., N, height, W) are right in every cell; (..., N) bool."""
    return (answers == truth).flatten(-2).all(dim=-1)


def auroc(score: Tensor, right: Tensor) -> float:
    """Return the chance that a right answer scores above a wrong one, for ``score`` and ``right`` (N,). NaN without both kinds."""
    good, bad = score[right].double(), score[~right].double()
    if not len(good) or not len(bad):
        return float("nan")
    bad = bad.sort().values
    below, up_to = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    return float((below + up_to).double().mean() / (2 * len(bad)))
