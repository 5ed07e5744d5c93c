"""Depth and breadth: the choice among restarts, and the residual as a score of correctness."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from attractor import Anderson, Picard, Solver, Steps
from attractor.errors import ConfigError
from attractor.evaluation import Restarts, auroc, exact, run_restarts
from attractor.models.reasoning import AttractorReasonerConfig


def restarts() -> Restarts:
    """Three restarts of two puzzles of one cell, at one depth."""
    answers = torch.tensor([[7, 1], [7, 2], [5, 3]], dtype=torch.uint8).view(3, 1, 2, 1, 1)
    residual = torch.tensor([[0.3, 0.2], [0.2, 0.1], [0.1, 0.3]]).view(3, 1, 2)
    return Restarts(depths=(4,), answers=answers, residual=residual)


def test_the_restart_with_the_lowest_residual_is_chosen_for_each_puzzle() -> None:
    """Among the first ``breadth`` restarts."""
    assert restarts().lowest_residual(1).flatten().tolist() == [7, 1]
    assert restarts().lowest_residual(2).flatten().tolist() == [7, 2]
    assert restarts().lowest_residual(3).flatten().tolist() == [5, 2]


def test_the_majority_is_chosen_and_the_residual_breaks_ties() -> None:
    """Two of three answers are 7; the second puzzle's answers differ, and restart two has the lowest residual."""
    assert restarts().majority(3).flatten().tolist() == [7, 2]


def test_a_majority_counts_complete_grids() -> None:
    """Equal cells do not count; equal grids do."""
    answers = torch.tensor([[1, 1], [1, 2], [1, 2], [2, 1], [3, 1]], dtype=torch.uint8).view(5, 1, 1, 1, 2)
    found = Restarts(depths=(1,), answers=answers, residual=torch.arange(5.0).view(5, 1, 1)).majority(5)
    assert found.flatten().tolist() == [1, 2]


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_equals_its_definition(ties: bool) -> None:
    """The share of pairs in which the right answer scores above the wrong one; ties count half."""
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(60, generator=generator)
    score = (4 * score).floor() if ties else score
    right = torch.rand(60, generator=generator) < 0.4
    pairs = [float(a > b) + 0.5 * float(a == b) for a in score[right] for b in score[~right]]
    assert auroc(score, right) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_is_nan_without_wrong_answers() -> None:
    """NaN, not a number that looks like a result."""
    assert math.isnan(auroc(torch.rand(3), torch.ones(3, dtype=torch.bool)))


@dataclass
class Counter:
    """The state starts at the number of restarts so far and counts evaluations; it is the answer and the residual."""

    solver: Solver
    num_restarts: int = 0

    def check_restarts(self, breadth: int, noise: float | None = None) -> None:
        pass

    def init_state(self, questions: Tensor) -> Tensor:
        self.num_restarts += 1
        return torch.full((*questions.shape, 1), float(self.num_restarts))

    def decode(self, state: Tensor) -> tuple[Tensor, None]:
        return torch.nn.functional.one_hot(state[..., 0].long(), 20).float(), None

    def __call__(self, questions: Tensor, state: Tensor, *, stop: Steps, trace: list[int]) -> object:
        points = torch.stack([state + n for n in trace])
        residual = points.flatten(2).mean(dim=2)
        return SimpleNamespace(solution=SimpleNamespace(value=points[-1], trace=points, trace_residual=residual))


@pytest.mark.parametrize("solver", [Picard(), Anderson()])
def test_restarts_are_independent_and_continue_from_depth_to_depth(solver: Solver) -> None:
    """Each restart has its own initial state, depths add up, and ``advance`` is called for every puzzle."""
    done: list[int] = []
    found = run_restarts(
        Counter(solver=solver), torch.zeros(3, 1, 1).long(), depths=(1, 4), breadth=2, batch_size=3, advance=done.append
    )
    assert found.answers[:, :, 0, 0, 0].tolist() == [[2, 5], [3, 6]]
    assert found.residual[:, :, 0].tolist() == [[2, 5], [3, 6]]
    assert sum(done) == 6
    assert exact(found.answers[0], torch.full((3, 1, 1), 5)).tolist() == [[False] * 3, [True] * 3]


def test_a_diverged_restart_is_never_chosen() -> None:
    """Any residual is lower than NaN."""
    answers = torch.tensor([7, 3], dtype=torch.uint8).view(2, 1, 1, 1, 1)
    found = Restarts(depths=(1,), answers=answers, residual=torch.tensor([float("nan"), 0.5]).view(2, 1, 1))
    assert found.lowest_residual(2).item() == 3
    assert found.majority(2).item() == 3


def test_restarts_of_a_fixed_initial_state_are_refused() -> None:
    """They would all be the same."""
    model = AttractorReasonerConfig(random_init=False).build()
    with pytest.raises(ConfigError, match="breadth=2"):
        run_restarts(model, torch.zeros(1, 3, 3).long(), depths=(1,), breadth=2)
