"""Depth and breadth: what is chosen among several starts, and what the residual knows."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from attractor.evaluation import Restarts, auroc, exact, run_restarts


def starts() -> Restarts:
    """Three starts of two puzzles of one cell, at one depth."""
    answers = torch.tensor([[7, 1], [7, 2], [5, 3]], dtype=torch.uint8).view(3, 1, 2, 1, 1)
    residual = torch.tensor([[0.3, 0.2], [0.2, 0.1], [0.1, 0.3]]).view(3, 1, 2)
    return Restarts(depths=(4,), answers=answers, residual=residual)


def test_the_calmest_start_is_chosen_for_each_puzzle() -> None:
    """The smallest residual among the first so many."""
    assert starts().lowest_residual(1).flatten().tolist() == [7, 1]
    assert starts().lowest_residual(2).flatten().tolist() == [7, 2]
    assert starts().lowest_residual(3).flatten().tolist() == [5, 2]


def test_the_majority_is_chosen_and_ties_go_to_the_calmest() -> None:
    """Two of three say 7; the second puzzle's three answers differ, and the second start is calmest."""
    assert starts().majority(3).flatten().tolist() == [7, 2]


def test_a_majority_counts_whole_grids() -> None:
    """Cells that agree do not make an answer frequent."""
    answers = torch.tensor([[1, 1], [1, 2], [1, 2], [2, 1], [3, 1]], dtype=torch.uint8).view(5, 1, 1, 1, 2)
    found = Restarts(depths=(1,), answers=answers, residual=torch.arange(5.0).view(5, 1, 1)).majority(5)
    assert found.flatten().tolist() == [1, 2]


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_chance_that_right_scores_above_wrong(ties: bool) -> None:
    """Against the definition, pair by pair."""
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(60, generator=generator)
    score = (4 * score).floor() if ties else score
    right = torch.rand(60, generator=generator) < 0.4
    pairs = [float(a > b) + 0.5 * float(a == b) for a in score[right] for b in score[~right]]
    assert auroc(score, right) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_needs_both_kinds() -> None:
    assert math.isnan(auroc(torch.rand(3), torch.ones(3, dtype=torch.bool)))


@dataclass
class Counter:
    """Adds the number of evaluations to a state that starts at the count of starts so far; answers with it."""

    num_starts: int = 0

    def start(self, questions: Tensor) -> Tensor:
        self.num_starts += 1
        return torch.full((*questions.shape, 1), float(self.num_starts))

    def __call__(self, questions: Tensor, state: Tensor, *, stop) -> object:
        state = state + stop.n
        logits = torch.nn.functional.one_hot(state[..., 0].long(), 20).float()
        solution = type("S", (), {"value": state, "residual": state.flatten(1).mean(dim=1)})
        return type("O", (), {"logits": logits, "solution": solution})


def test_exploring_goes_on_from_depth_to_depth_with_fresh_starts() -> None:
    """Each start is its own, depths add up, batches do not matter, and the bar hears of every puzzle."""
    done: list[int] = []
    found = run_restarts(
        Counter(), torch.zeros(3, 1, 1).long(), depths=(1, 4), breadth=2, batch_size=3, advance=done.append
    )
    assert found.answers[:, :, 0, 0, 0].tolist() == [[2, 5], [3, 6]]
    assert found.residual[:, :, 0].tolist() == [[2, 5], [3, 6]]
    assert sum(done) == 6
    assert exact(found.answers[0], torch.full((3, 1, 1), 5)).tolist() == [[False] * 3, [True] * 3]


def test_a_start_that_blew_up_is_never_chosen() -> None:
    """A residual that is not a number loses to any other."""
    answers = torch.tensor([7, 3], dtype=torch.uint8).view(2, 1, 1, 1, 1)
    found = Restarts(depths=(1,), answers=answers, residual=torch.tensor([float("nan"), 0.5]).view(2, 1, 1))
    assert found.lowest_residual(2).item() == 3
    assert found.majority(2).item() == 3
