"""The Python API: train, load, evaluate and solve, without the command line."""

import json

import pytest

import attractor
from attractor import recipes
from attractor.data import maze
from attractor.errors import CheckpointError, ConfigError
from attractor.experiment import loading
from attractor.experiment.solve import LoadedReasoner

SMALL = {
    "train.seconds": None,
    "train.num_steps": 2,
    "data.num_puzzles": 12,
    "data.size": 7,
    "data.style": "perfect",
    "data.min_path": 1,
    "model.update.width": 8,
    "model.evaluations_per_segment": 2,
    "model.backprop_steps": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> LoadedReasoner:
    out = tmp_path_factory.mktemp("api") / "run"
    return attractor.train(recipes.override(recipes.get("maze"), SMALL), out=out, progress=False)


def test_a_trained_reasoner_is_returned_and_loaded(trained, capfd) -> None:
    """From the run and from the checkpoint; nothing is printed."""
    assert trained.path.name == "step-00000002"
    assert trained.puzzle.kind == "maze"
    for path in (trained.path, str(trained.path.parent)):
        loaded = attractor.load(path)
        weights = loaded.model.state_dict()
        assert all((weights[name] == value).all() for name, value in trained.model.state_dict().items())
        assert (loaded.size, loaded.path) == (7, trained.path)
    assert capfd.readouterr() == ("", "")


def test_figures_are_plain_data(trained, tmp_path, capfd) -> None:
    """The same for a loaded model and its path, and what is written is what is returned."""
    puzzles = maze.generate(3, 9, seed=0)
    figures = attractor.evaluate(trained, puzzles, depths=(1, 4), out=tmp_path / "figures.json")
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert attractor.evaluate(str(trained.path), puzzles, depths=(1, 4)) == figures
    assert figures["results"]["num_puzzles"] == 3
    assert len(figures["results"]["exact_by_residual"][0]) == 2
    assert capfd.readouterr() == ("", "")


def test_puzzles_are_solved(trained) -> None:
    """With the same budgets as everywhere."""
    solutions = trained.solve(maze.generate(2, 9, seed=0), depth=3)
    assert [solution.evaluations for solution in solutions] == [3, 3]


def test_mistakes_are_refused(trained, tmp_path) -> None:
    """Before anything is written."""
    with pytest.raises(ConfigError, match="give the folder to write as out"):
        attractor.train(recipes.get("maze"))
    with pytest.raises(ConfigError, match="needs text"):
        attractor.train("language/tiny", out=tmp_path / "a")
    with pytest.raises(ConfigError, match="tasks is for language models"):
        attractor.evaluate(trained, maze.generate(2, 9, seed=0), tasks=["text"])
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        attractor.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_name_on_the_hub_is_downloaded_without_code(trained, monkeypatch) -> None:
    """Only configuration, weights and tokenizer; local folders are never looked up there."""
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(trained.path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert attractor.load("someone/mazes").path == trained.path
    assert asked == [("someone/mazes", list(loading.HUB_FILES))]
    assert not any(pattern.endswith((".py", ".bin")) for pattern in loading.HUB_FILES)
    attractor.load(str(trained.path))
    assert len(asked) == 1
