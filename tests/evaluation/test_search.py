"""Search with guesses: it finds every answer with any model, proves that there is none, and keeps its budget."""

import numpy as np
import pytest
import torch

from attractor.data import SUDOKU
from attractor.data.sudoku import deduce, solve
from attractor.errors import ConfigError
from attractor.evaluation import SearchResult, run_search
from attractor.models.reasoning import AttractorReasoner, AttractorReasonerConfig
from attractor.nn import SymmetricUpdateConfig

HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."


def untrained(box_height: int, box_width: int) -> AttractorReasoner:
    torch.manual_seed(0)
    update = SymmetricUpdateConfig(width=8, hidden=8, box_height=box_height, box_width=box_width)
    num = box_height * box_width + 1
    return AttractorReasonerConfig(num_symbols=num, num_classes=num, update=update).build().eval()


def search(size: int, num: int, **settings: int) -> tuple[SearchResult, torch.Tensor, torch.Tensor]:
    """Search minimal Sudokus with an untrained model; return the result, the questions and the answers."""
    puzzles = SUDOKU.generate(num, seed=1, size=size)
    questions, answers = (torch.from_numpy(np.array(grids)).long() for grids in (puzzles.questions, puzzles.answers))
    return (
        run_search(untrained(size // 2 if size == 4 else 2, size // 2), questions, deduce, **settings),
        questions,
        answers,
    )


@pytest.mark.parametrize(("size", "batch_size"), [(4, 3), (6, 64)])
def test_a_model_that_knows_nothing_finds_every_answer(size: int, batch_size: int) -> None:
    """Only what the rules exclude is ruled out, so that the search is complete without any training."""
    found, _, answers = search(size, 12, first_depth=2, depth=1, max_evaluations=100_000, batch_size=batch_size)
    assert found.solved.all()
    assert not found.impossible.any()
    assert torch.equal(found.answers.long(), answers)
    assert (found.guesses > 0).any()


def test_alternatives_of_a_wrong_guess_have_their_turn() -> None:
    """Also where the rules only refuse a complete grid, every digit of every guessed cell is tried in the end."""

    def check(grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return grids, deduce(grids)[1] | (grids == 0).any(axis=(1, 2))

    puzzles = SUDOKU.generate(5, seed=0, size=4)
    answers = torch.from_numpy(np.array(puzzles.answers)).long()
    blank = torch.rand(5, 16, generator=torch.Generator().manual_seed(0)).argsort(dim=1).view(5, 4, 4) < 4
    questions = answers.masked_fill(blank, 0)
    found = run_search(untrained(2, 2), questions, check, first_depth=1, depth=1, max_evaluations=10_000)
    assert found.solved.all()
    assert torch.equal(found.answers.long(), answers)
    assert (found.guesses > 4).any()


def test_evaluations_are_those_before_the_first_guess_and_after_each_one() -> None:
    """A guess after which the rules fill the grid costs none, so that at most the last one is not counted."""
    found, _, _ = search(6, 12, first_depth=5, depth=2, max_evaluations=100_000)
    guessed = found.guesses > 0
    assert guessed.any()
    most = 6 + 2 * found.guesses
    assert ((found.evaluations == most) | (found.evaluations == most - 2))[guessed].all()
    assert (found.evaluations <= 6)[~guessed].all()


@pytest.mark.parametrize("max_evaluations", [3, 32])
def test_the_budget_of_evaluations_is_kept(max_evaluations: int) -> None:
    """A puzzle that needs more is neither solved nor impossible, and its answer breaks the rules."""
    grid = SUDOKU.parse(HARD)[0].grid
    question = torch.from_numpy(np.array(grid)).long()[None]
    found = run_search(untrained(3, 3), question, deduce, first_depth=6, depth=3, max_evaluations=max_evaluations)
    assert max_evaluations - 3 < int(found.evaluations) <= max_evaluations
    assert not found.solved.any()
    assert not found.impossible.any()
    assert not deduce(found.answers.numpy())[1].any()


def test_a_puzzle_without_a_solution_is_reported() -> None:
    """A row of 1 2 3 . with a 4 below the blank has none; the other puzzle of the batch is solved."""
    wrong, good = torch.zeros(4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long)
    wrong[0] = torch.tensor([1, 2, 3, 0])
    wrong[2, 3] = 4
    good[0, 0] = 1
    found = run_search(untrained(2, 2), torch.stack([wrong, good]), deduce, max_evaluations=100_000)
    assert found.impossible.tolist() == [True, False]
    assert found.solved.tolist() == [False, True]


def test_a_budget_that_allows_nothing_is_refused() -> None:
    """One sentence names the numbers."""
    with pytest.raises(ConfigError, match="max_evaluations=3"):
        search(4, 1, depth=4, max_evaluations=3)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_deduce_fills_in_only_digits_of_the_solution(size: int) -> None:
    """All solutions stay, complete grids are told from wrong ones, and clues are kept."""
    puzzles = SUDOKU.generate(20, seed=0, size=size)
    filled, possible = deduce(puzzles.questions)
    assert possible.all()
    assert ((filled == 0) | (filled == puzzles.answers)).all()
    assert ((filled > 0) | (puzzles.questions == 0)).all()
    assert (filled > 0).sum() > (puzzles.questions > 0).sum()
    wrong = puzzles.answers.copy()
    wrong[:, 0, 0] = wrong[:, 0, 1]
    assert not deduce(wrong)[1].any()
    assert np.array_equal(solve(filled[0]), puzzles.answers[0])
