"""Depth and breadth: the choice among restarts, and the residual as a score of correctness."""

import math
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from attractor import Anderson, Picard, Solver, Steps
from attractor.errors import ConfigError
from attractor.evaluation import Restarts, auroc, binomial_interval, check_selections, exact, run_restarts
from attractor.models.reasoning import AttractorReasonerConfig, TRMConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig


def restarts() -> Restarts:
    """Three restarts of two puzzles of one cell, at one depth."""
    answers = torch.tensor([[7, 1], [7, 2], [5, 3]], dtype=torch.uint8).view(3, 1, 2, 1, 1)
    residual = torch.tensor([[0.3, 0.2], [0.2, 0.1], [0.1, 0.3]]).view(3, 1, 2)
    return chosen_among(answers, residual, depths=(4,))


def chosen_among(answers: Tensor, residual: Tensor, depths: tuple[int, ...] = (1,), **scores: Tensor) -> Restarts:
    """Restarts with these answers and scores."""
    evaluations = torch.ones_like(residual)
    return Restarts(depths=depths, answers=answers, scores={"residual": residual, **scores}, evaluations=evaluations)


def test_the_restart_with_the_lowest_residual_is_chosen_for_each_puzzle() -> None:
    """Among the first ``breadth`` restarts."""
    assert restarts().select("residual", 1).flatten().tolist() == [7, 1]
    assert restarts().select("residual", 2).flatten().tolist() == [7, 2]
    assert restarts().select("residual", 3).flatten().tolist() == [5, 2]


def test_the_majority_is_chosen_and_the_residual_breaks_ties() -> None:
    """Two of three answers are 7; the second puzzle's answers differ, and restart two has the lowest residual."""
    assert restarts().select("majority", 3).flatten().tolist() == [7, 2]


def test_a_majority_counts_complete_grids() -> None:
    """Equal cells do not count; equal grids do."""
    answers = torch.tensor([[1, 1], [1, 2], [1, 2], [2, 1], [3, 1]], dtype=torch.uint8).view(5, 1, 1, 1, 2)
    found = chosen_among(answers, torch.arange(5.0).view(5, 1, 1)).select("majority", 5)
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
    evaluations_per_segment = 2

    def check_restarts(self, breadth: int, noise: float | None = None) -> None:
        pass

    def init_state(self, questions: Tensor) -> Tensor:
        self.num_restarts += 1
        return torch.full((*questions.shape, 1), float(self.num_restarts))

    def decode(self, state: Tensor) -> tuple[Tensor, None]:
        return torch.nn.functional.one_hot(state[..., 0].long(), 20).float(), None

    def __call__(
        self, questions: Tensor, state: Tensor, *, stop: Steps, noise: float | None, trace: list[int]
    ) -> object:
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
    found = chosen_among(answers, torch.tensor([float("nan"), 0.5]).view(2, 1, 1))
    assert found.select("residual", 2).item() == 3
    assert found.select("majority", 2).item() == 3


def test_restarts_of_a_fixed_initial_state_are_refused() -> None:
    """They would all be the same."""
    model = AttractorReasonerConfig(random_init=False).build()
    with pytest.raises(ConfigError, match="breadth=2"):
        run_restarts(model, torch.zeros(1, 3, 3).long(), depths=(1,), breadth=2)


def test_each_score_chooses_by_its_own_values() -> None:
    """The lowest value; the majority of the best few by the change of the logits leaves out the others."""
    answers = torch.tensor([7, 5, 7, 5], dtype=torch.uint8).view(4, 1, 1, 1, 1)
    scores = {"logit-window": [0.2, 0.1, 0.9, 0.8], "halting-logit": [3.0, 2.0, -1.0, 4.0]}
    found = chosen_among(
        answers,
        torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1),
        **{name: torch.tensor(score).view(4, 1, 1) for name, score in scores.items()},
    )
    chosen = {s: found.select(s, 4).item() for s in ("residual", "logit-window", "halting-logit", "majority")}
    assert chosen == {"residual": 7, "logit-window": 5, "halting-logit": 7, "majority": 7}
    assert found.select("top-2-majority", 4).item() == 5
    assert found.select("top-3-majority", 4).item() == 5
    assert found.select("top-4-majority", 1).item() == 7


def tiny_trm() -> TRMConfig:
    network = GridNetworkConfig(width=16, hidden=16, mixing="attention", num_heads=2)
    return TRMConfig(num_symbols=5, num_classes=5, update=TRMUpdateConfig(network=network, num_latent=2))


@torch.no_grad()
def test_scores_are_those_of_the_trajectory() -> None:
    """The norm of a cell's change of logits, over cells and the last three segments, or from the start; the halting logit."""
    torch.manual_seed(0)
    model = tiny_trm().build().eval()
    torch.nn.init.normal_(model.q_head.weight)
    q = torch.randint(0, 5, (4, 3, 3))
    found = run_restarts(model, q, depths=(1, 7, 12), batch_size=3)
    state = model.init_state(q)
    logits = {d: (model(q, state, depth=d).logits if d else model.decode(state)[0]) for d in (0, 1, 3, 4, 6, 7, 9, 12)}
    for column, steps in enumerate(((1, 0), (7, 4, 1, 0), (12, 9, 6, 3))):
        change = [(logits[a] - logits[b]).norm(dim=-1).mean(dim=(1, 2)) for a, b in pairwise(steps)]
        expected = torch.stack(change).mean(dim=0)
        assert torch.allclose(found.scores["logit-window"][0, column], expected, rtol=1e-3)
        output = model(q, state, depth=steps[0])
        assert torch.allclose(found.scores["halting-logit"][0, column], -output.halt, atol=1e-4)
        assert torch.equal(found.answers[0, column].long(), output.logits.argmax(dim=-1))
    assert found.evaluations[0].tolist() == [[1] * 4, [7] * 4, [12] * 4]


@torch.no_grad()
@pytest.mark.parametrize("halting", ["logit", "residual"])
def test_a_halted_puzzle_keeps_its_answer_and_costs_nothing_more(halting: str) -> None:
    """It is looked at after every segment, also between the depths."""
    torch.manual_seed(0)
    model = tiny_trm().build().eval()
    torch.nn.init.normal_(model.q_head.weight)
    q = torch.randint(0, 5, (16, 3, 3))
    every = run_restarts(model, q, depths=(3, 6, 9, 12))
    score = every.scores["halting-logit" if halting == "logit" else "residual"][0]
    limit = float(score.median())  # some halt early and some late
    model.q_head.bias.sub_(-limit)
    found = run_restarts(model, q, depths=(12,), halting=halting, tolerance=limit)
    halts = score < limit
    halts[-1] = True
    first = halts.int().argmax(dim=0)
    assert found.evaluations[0, 0].tolist() == [3 * (int(i) + 1) for i in first]
    assert 0 < int((first < 3).sum()) < 16
    assert run_restarts(model, q, depths=(2, 13, 40), halting=halting, tolerance=limit).evaluations[0, 0].max() == 2
    assert torch.equal(found.answers[0, 0], every.answers[0].take_along_dim(first.view(1, 16, 1, 1), dim=0)[0])


def test_what_a_family_cannot_use_is_one_sentence() -> None:
    """Unknown selections, and logits of a halting head that is not there."""
    model = AttractorReasonerConfig().build()
    for selections, halting, says in (
        (["best"], "none", "there is no selection 'best'"),
        (["top-0-majority"], "none", "top-4-majority"),
        (["halting-logit"], "none", "no halting head"),
        ([], "logit", "no halting head"),
        ([], "always", "halting='always'"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            check_selections(model, selections, halting)
        assert "\n" not in str(caught.value)
    check_selections(model, ["residual", "top-7-majority", "logit-window"], "residual")
    check_selections(tiny_trm().build(), ["halting-logit"], "logit")


def test_the_binomial_interval_is_wilsons() -> None:
    """Values of Newcombe (1998), table I: 81 of 263 and 0 of 20."""
    assert binomial_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert binomial_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert binomial_interval(20, 20) == pytest.approx((0.8389, 1), abs=1e-4)
