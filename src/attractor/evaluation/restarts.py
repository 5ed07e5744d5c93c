"""Depth and breadth: restarts from random initial states, and the choice of one answer without knowing the truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.evaluation.puzzles import read_depths
from attractor.models.reasoning import Reasoner


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """``answers`` (K, depths, N, height, W) uint8 of K restarts of N puzzles, and their ``residual`` (K, depths, N)."""

    depths: tuple[int, ...]
    answers: Tensor
    residual: Tensor

    def lowest_residual(self, breadth: int) -> Tensor:
        """Return each puzzle's answer with the lowest residual of ``breadth`` restarts; (depths, N, height, W)."""
        best = self.residual[:breadth].nan_to_num(torch.inf).argmin(dim=0)[None, :, :, None, None]
        return self.answers[:breadth].take_along_dim(best, dim=0)[0]

    def majority(self, breadth: int) -> Tensor:
        """Return each puzzle's most frequent answer among the first ``breadth`` restarts; (depths, N, height, W).

        Of equally frequent answers the one with the lowest residual is taken.
        """
        answers = self.answers[:breadth]
        votes = torch.stack([(answers == one).flatten(3).all(dim=3).sum(dim=0) for one in answers])  # (K, depths, N)
        rank = self.residual[:breadth].nan_to_num(torch.inf).argsort(dim=0, descending=True).argsort(dim=0)
        best = (votes * breadth + rank).argmax(dim=0)[None, :, :, None, None]
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
    """Run every puzzle (N, height, W) from ``breadth`` initial states, and read it at increasing ``depths``.

    ``advance`` is called with the number of puzzles that are finished. Raises ConfigError for a breadth above 1 when the
    model's initial state is not random.
    """
    model.check_restarts(breadth)
    answers = torch.zeros(breadth, len(depths), *questions.shape, dtype=torch.uint8)
    residual = torch.zeros(breadth, len(depths), len(questions))
    for k in range(breadth):
        for first in range(0, len(questions), batch_size):
            batch = slice(first, first + batch_size)
            for row, (_, logits, residuals) in enumerate(read_depths(model, questions[batch], depths)):
                answers[k, row, batch] = logits.argmax(dim=-1).to("cpu", torch.uint8)
                residual[k, row, batch] = residuals
            advance(len(questions[batch]))
    return Restarts(depths=tuple(depths), answers=answers, residual=residual)


def exact(answers: Tensor, truth: Tensor) -> Tensor:
    """Return which answers (..., N, height, W) are right in every cell; (..., N) bool."""
    return (answers == truth).flatten(-2).all(dim=-1)


def auroc(score: Tensor, right: Tensor) -> float:
    """Return the probability that a right answer has a higher ``score`` (N,) than a wrong one; NaN if one kind is missing."""
    good, bad = score[right].double(), score[~right].double()
    if not len(good) or not len(bad):
        return float("nan")
    bad = bad.sort().values
    below, up_to = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    return float((below + up_to).double().mean() / (2 * len(bad)))
