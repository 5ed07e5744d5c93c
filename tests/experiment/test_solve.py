"""Puzzles are prepared and solved from Python."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attractor.data import MAZE, PUZZLES, SUDOKU, PuzzleSet, maze, puzzles, sudoku
from attractor.errors import ConfigError, DataError
from attractor.experiment.prepare import (
    PuzzleSummary,
    TextSummary,
    prepare_mazes,
    prepare_sudoku,
    prepare_text,
    verify_data,
)
from attractor.experiment.solve import LoadedReasoner, locate_puzzles, solve_puzzles
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig


@pytest.fixture(scope="module")
def loaded() -> LoadedReasoner:
    """An untrained reasoner for Sudokus of 4 digits."""
    torch.manual_seed(0)
    update = TRMUpdateConfig(network=GridNetworkConfig(width=16, hidden=16, cell_hidden=16, num_cells=16))
    model = AttractorReasonerConfig(update=update, num_symbols=5, num_classes=5).build().eval()
    return LoadedReasoner(model=model, puzzle=SUDOKU, size=4, path=Path("none"))


@pytest.fixture(scope="module")
def drawn() -> PuzzleSet:
    return sudoku.generate(3, size=4, clues=6, seed=0)


def test_puzzles_may_be_text_files_grids_or_sets(loaded, drawn, tmp_path) -> None:
    """All forms give the same answers."""
    lines = ["".join(map(str, grid.flat)) for grid in drawn.questions]
    file = tmp_path / "puzzles.txt"
    file.write_text("\n".join(lines))
    expected = solve_puzzles(loaded, drawn, depth=3)
    assert [s.evaluations for s in expected] == [3, 3, 3]
    for given in ("\n".join(lines), lines, file, str(file), drawn.questions, list(drawn.questions)):
        found = loaded.solve(given, depth=3)
        assert all((a.answer == b.answer).all() for a, b in zip(found, expected, strict=True))
    assert loaded.solve(file, depth=1)[1].place == f"{file}, line 2"
    assert loaded.solve(lines[0], depth=1)[0].place == "the puzzle, line 1"


def test_a_solution_says_whether_it_is_correct(loaded, drawn, monkeypatch) -> None:
    """By the rules of the puzzle, with one sentence; the budget decides about convergence."""
    for solution in solve_puzzles(loaded, drawn, tolerance=10.0, max_evaluations=4):
        assert solution.converged
        assert solution.is_correct == bool(sudoku.solves(solution.question[None], solution.answer[None])[0])
        assert solution.verdict.startswith("verified" if solution.is_correct else "wrong")
        assert solution.probabilities.shape == (4, 4, 5)
    with pytest.raises(ConfigError, match="depth"):
        solve_puzzles(loaded, drawn, depth=2, tolerance=0.1)


def test_puzzles_that_do_not_fit_are_refused_before_the_first_is_solved(loaded, drawn, monkeypatch) -> None:
    """With the number of the grid."""
    monkeypatch.setattr(type(loaded.model), "solve", None)
    bad = np.concatenate([drawn.questions, np.zeros((1, 4, 4), np.uint8)])
    with pytest.raises(DataError, match=r"puzzle 3 \(from 0\): this puzzle has several solutions"):
        solve_puzzles(loaded, bad)
    with pytest.raises(DataError, match="shape"):
        solve_puzzles(loaded, np.zeros(4, np.uint8))


@pytest.mark.parametrize("kind", sorted(PUZZLES.keys() - {"arc"}))  # whose tasks are not generated
def test_every_kind_implements_the_protocol(kind: str) -> None:
    """Generated puzzles pass their own checks, and survive being written as text."""
    puzzle = PUZZLES[kind]
    found = puzzle.generate(4, seed=0, size=9)
    assert found.puzzle is puzzle
    assert len(puzzle.alphabet(9)) == puzzle.num_classes(9) == found.num_classes
    assert puzzle.is_right(found.questions, found.answers, found.answers).all()
    assert not puzzle.is_right(found.questions, found.questions, found.answers).any()
    for question, answer in zip(found.questions, found.answers, strict=True):
        puzzle.check(question)
        assert puzzle.verdict(question, answer).is_correct
        assert not puzzle.verdict(question, question).is_correct
        np.testing.assert_array_equal(locate_puzzles(puzzle, puzzle.render(question))[0].grid, question)
    other = puzzle.generate(2, seed=1, size=9, exclude=found)
    turned = puzzle.augment(found.questions, found.answers, np.random.default_rng(0))
    test = other + PuzzleSet(kind=kind, questions=turned[0], answers=turned[1])
    assert puzzle.find_copies(test, found).tolist() == [2, 3, 4, 5]
    assert puzzle.difficulty(found) > 0


def test_a_mixture_of_mazes_has_its_fractions() -> None:
    """Corners for a share of them; all differ from each other and from those to exclude."""
    found = MAZE.generate(20, seed=0, size=9, corner_fraction=0.5, dfs_fraction=0.5)
    in_corners = (found.questions[:, 1, 1] == maze.Cell.START) & (found.questions[:, -2, -2] == maze.Cell.GOAL)
    assert in_corners[:10].all()
    assert not in_corners[10:].all()
    more = MAZE.generate(20, seed=0, size=9, corner_fraction=0.5, dfs_fraction=0.5, exclude=found)
    assert len(np.unique(maze.fingerprints((found + more).questions))) == 40


def test_folders_are_prepared_and_verified(tmp_path) -> None:
    """The summary of a verified folder is the one of its preparation."""
    made = prepare_sudoku(tmp_path / "a", size=4, num=5, num_test=3, clues=6)
    assert isinstance(made, PuzzleSummary)
    assert [(s.name, s.num_puzzles, s.difficulty) for s in made.splits] == [
        ("train", 5, 6.0),
        ("test", 3, 6.0),
        ("dev", 1, 6.0),
    ]
    assert verify_data(tmp_path / "a") == made
    walls = prepare_mazes(tmp_path / "b", style="walls", size=8, num=4, num_test=2, min_path=5)
    assert (walls.kind, walls.difficulty_name) == ("maze", "steps")
    assert puzzles.read_index(tmp_path / "b")["metadata"]["style"] == "walls"
    (tmp_path / "a.txt").write_text("one two three " * 200)
    (tmp_path / "b.txt").write_text("four five six " * 200)
    text = prepare_text([tmp_path / "a.txt"], tmp_path / "c", val=[tmp_path / "b.txt"], vocab_size=260)
    assert [(s.name, s.num_documents) for s in text.splits] == [("train", 1), ("val", 1)]
    assert text.tokens_per_second > 0
    verified = verify_data(tmp_path / "c")
    assert isinstance(verified, TextSummary)
    assert verified.splits == text.splits
