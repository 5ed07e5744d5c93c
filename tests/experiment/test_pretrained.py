"""The models that come with the package solve puzzles at once."""

from pathlib import Path

import numpy as np
import pytest

import attractor
from attractor.cli import main
from attractor.data import maze, sudoku
from attractor.errors import ConfigError, DataError
from attractor.experiment.loading import load_reasoner
from attractor.experiment.pretrained import FOLDER, pretrained, pretrained_for

PUZZLE = "21.....5.6..6.......32......42....5."
HARD = "8..........36......7..9.2...5...7.......457.....1...3...1....68..85...1..9....4.."


@pytest.mark.parametrize("name", pretrained())
def test_each_is_small_has_a_card_and_solves_new_puzzles(name: str) -> None:
    """Sudokus of its own size, and perfect mazes: at least nine of ten."""
    files = list((FOLDER / name).iterdir())
    assert sum(file.stat().st_size for file in files) < 1_000_000
    card = (FOLDER / name / "README.md").read_text()
    assert "attractor train" in card
    loaded = load_reasoner(name)
    settings = {"sudoku-6x6": {"clues": 10}, "maze": {"size": 21}}.get(name, {})
    puzzles = loaded.puzzle.generate(10, seed=987_654, **{"size": loaded.size, **settings})
    assert pretrained_for(puzzles) == name
    search = {"search": True} if name == "sudoku-9x9" else {}
    assert sum(solution.is_correct for solution in loaded.solve(puzzles, **search)) >= 9


def test_the_kind_and_size_of_a_puzzle_choose_the_model(tmp_path) -> None:
    """Of a line, a drawing, a file, or a grid."""
    drawing = sudoku.SUDOKU.render(sudoku.SUDOKU.parse(PUZZLE)[0].grid)
    file = tmp_path / "maze.txt"
    maze.write(file, [maze.generate(1, 11, seed=0).questions[0]])
    assert pretrained_for(PUZZLE) == pretrained_for(drawing) == "sudoku-6x6"
    assert pretrained_for(str(file)) == pretrained_for(file) == pretrained_for(file.read_text()) == "maze"
    with pytest.raises(ConfigError, match="sudoku-4x4; give a checkpoint, or one of maze"):
        pretrained_for(sudoku.generate(1, size=4, clues=6, seed=0).questions)
    with pytest.raises(DataError, match="solution"):
        pretrained_for(np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match="line 2, column 2"):
        pretrained_for("###\n#x#\n###")
    with pytest.raises(DataError, match=r"none\.txt"):
        pretrained_for("none.txt")


def test_a_folder_of_the_same_name_comes_first(tmp_path, monkeypatch) -> None:
    """A run's folder named as a model of the package is that run."""
    monkeypatch.chdir(tmp_path)
    assert attractor.load("maze").path == FOLDER / "maze"
    Path("maze").mkdir()
    with pytest.raises(attractor.CheckpointError, match="no checkpoint here"):
        attractor.load("maze")


def test_the_command_solves_without_a_checkpoint(capsys) -> None:
    """One argument is the puzzle; a wrong one ends with one sentence."""
    assert main(["solve", PUZZLE]) == 0
    assert "verified: solved" in capsys.readouterr().out
    assert main(["solve", HARD]) == 0
    assert "guesses" in capsys.readouterr().out
    assert main(["solve", "none.txt"]) == 2
    assert "none.txt cannot be read" in capsys.readouterr().err


def test_the_content_of_a_file_decides_which_mistake_is_named(tmp_path) -> None:
    """A Sudoku with a mistake is not read as a maze."""
    file = tmp_path / "puzzle.txt"
    for text, says in [
        (PUZZLE[:-1] + "x", "unexpected 'x'; write digits"),
        ("." * 81, "several solutions"),
        ("XXXX\nXSGX\nXXXX", "if 'X' is a wall"),
    ]:
        file.write_text(text)
        with pytest.raises(DataError, match=says):
            pretrained_for(file)


@pytest.mark.parametrize("name", pretrained())
def test_the_card_states_the_number_of_weights(name: str) -> None:
    num = sum(weight.numel() for weight in attractor.load(name).model.parameters())
    assert f"{num:,} weights" in (FOLDER / name / "README.md").read_text()
