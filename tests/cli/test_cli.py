"""The command line: what works, and that every mistake is one sentence and exit code 2."""

import io
import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch

from attractor import recipes
from attractor.cli import main
from attractor.cli.commands import COMMANDS
from attractor.config import all_paths, describe
from attractor.data import maze
from attractor.experiment.loading import load_reasoner
from attractor.experiment.puzzles import train_reasoner
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import GatedConvolutionUpdateConfig
from attractor.objectives import DeepSupervisionConfig
from attractor.recipes import MazeDataConfig
from attractor.recipes import maze as maze_recipe
from attractor.training import TrainConfig

TINY = replace(
    maze_recipe(),
    model=AttractorReasonerConfig(
        update=GatedConvolutionUpdateConfig(width=8), evaluations_per_segment=2, backprop_steps=1
    ),
    data=MazeDataConfig(num_puzzles=20, size=7),
    supervision=DeepSupervisionConfig(),
    train=TrainConfig(num_steps=2),
)
FAST = [
    "model.update.width=8", "train.seconds=null", "train.num_steps=3", "data.num_puzzles=20", "data.size=7",
    "data.style=perfect", "data.min_path=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train_reasoner(TINY, out)
    return out


@pytest.fixture
def maze_file(tmp_path):
    file = tmp_path / "maze.txt"
    maze.write(file, list(maze.generate(2, 9, seed=0).questions))
    return file


def test_solve_prints_answer_verdict_residual_and_cost(checkpoint, maze_file, capsys) -> None:
    """For every maze in the file."""
    assert main(["solve", str(checkpoint), str(maze_file), "--depth", "8"]) == 1
    out = capsys.readouterr().out
    assert out.count("residual") == 2
    assert "8 evaluations" in out
    assert "wrong:" in out or "verified:" in out


def test_a_small_model_solves_with_one_thread(checkpoint, maze_file, monkeypatch) -> None:
    """On a busy machine several threads wait for each other. A larger model keeps them, and so does the caller."""
    before, used = torch.get_num_threads(), []
    model = type(load_reasoner(checkpoint).model)
    real = model.solve
    monkeypatch.setattr(model, "solve", lambda *a, **k: used.append(torch.get_num_threads()) or real(*a, **k))
    try:
        torch.set_num_threads(3)
        main(["solve", str(checkpoint), str(maze_file), "--depth", "1"])
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("attractor.experiment.device.SMALL", 100)
        main(["solve", str(checkpoint), str(maze_file), "--depth", "1"])
    finally:
        torch.set_num_threads(before)
    assert used == [1, 1, 3, 3]


@pytest.mark.parametrize("more", [[], ["--latest"]])
def test_export_inference_keeps_what_inference_needs(more: list[str], checkpoint, maze_file, tmp_path, capsys) -> None:
    """And it answers as the checkpoint does; the weights of the last step are others than the averaged ones."""
    out = tmp_path / "model"
    assert main(["export-inference", str(checkpoint), str(out), *more]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["checksums.json", "model.safetensors", "run.json"]
    whole, alone = (load_reasoner(path).model.state_dict() for path in (checkpoint, out))
    assert all(torch.equal(whole[name], alone[name]) for name in whole) == (not more)
    assert main(["solve", str(out), str(maze_file), "--depth", "8"]) == 1
    assert main(["export-inference", str(out), str(tmp_path / "again")]) == 0
    capsys.readouterr()
    assert main(["export-inference", str(checkpoint), str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-1])
    assert main(["export-inference", str(out), str(tmp_path / "other")]) == 2
    assert "model.safetensors: has" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_mazes_come_from_a_csv_and_are_evaluated_by_label_and_by_length(checkpoint, tmp_path, capsys) -> None:
    """Solved from it, and evaluated both as labelled and as valid and shortest, by depth and breadth."""
    drawn, file = maze.generate_walls(3, 9, seed=0), tmp_path / "mazes.csv"
    lines = [
        "me," + ",".join(maze.render(g[i]).replace("\n", "") for g in (drawn.questions, drawn.answers)) + ",0"
        for i in range(3)
    ]
    file.write_text("source,question,answer,rating\n" + "\n".join(lines) + "\n")
    assert main(["solve", str(checkpoint), str(file), "--depth", "2"]) == 1
    assert capsys.readouterr().out.count("residual") == 3
    figures = tmp_path / "figures.json"
    arguments = ["--data", str(file), "--depths", "1", "2", "4", "--breadths", "1", "2", "--out", str(figures)]
    assert main(["evaluate", str(checkpoint), *arguments]) == 0
    assert "any correct answer counts" in capsys.readouterr().out
    results = json.loads(figures.read_text())["results"]
    assert np.shape(results["right_by_residual"]) == np.shape(results["exact_by_residual"]) == (2, 3)


def test_train_writes_a_checkpoint_and_resumes(tmp_path, capsys) -> None:
    """By recipe name with changed settings."""
    out = tmp_path / "run"
    assert main(["train", "maze", "--out", str(out), "--set", *FAST]) == 0
    assert (out / "step-00000003" / "model.safetensors").is_file()
    assert main(["train", "maze", "--out", str(out), "--resume", "--set", *FAST]) == 0


def test_overwriting_forgets_the_older_run(tmp_path) -> None:
    """A shorter run into the same folder leaves its own checkpoint as the newest."""
    out = tmp_path / "run"
    assert main(["train", "maze", "--out", str(out), "--set", *FAST]) == 0
    assert main(["train", "maze", "--out", str(out), "--overwrite", "--set", *FAST, "train.num_steps=2"]) == 0
    assert [p.name for p in out.glob("step-*")] == ["step-00000002"]


def test_several_mazes_come_from_standard_input(checkpoint, maze_file, capsys, monkeypatch) -> None:
    """And wide ones are not folded."""
    wide = maze.render(maze.generate(1, 91, seed=0).questions[0])
    monkeypatch.setattr("sys.stdin", io.StringIO(maze_file.read_text() + "\n" + wide))
    assert main(["solve", str(checkpoint), "-", "--depth", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("residual" in line for line in lines) == 3
    assert max(map(len, lines)) >= 91


def test_help_is_there_for_every_command(capsys) -> None:
    """And names the arguments."""
    for command in ("demo", "solve", "train"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert "seed" in capsys.readouterr().out


def test_help_names_what_is_expected(capsys) -> None:
    """Placeholders are words, not types, and descriptions are folded at the width of the terminal only."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "RECIPE" in shown
    assert "--init CHECKPOINT" in shown
    assert "STR" not in shown
    assert "None}" not in shown
    lines = [line.strip("│ ") for line in shown.splitlines()]
    assert not any(line.startswith("without it.") for line in lines), "folded where the source is folded"


def test_without_a_command_the_commands_are_listed(capsys) -> None:
    """Each with one line; a misspelled command is corrected."""
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS)
    assert "--tyro-write-completion" in shown
    assert main(["tran"]) == 2
    assert capsys.readouterr().err == "attractor: there is no command 'tran'; did you mean 'train'?\n"


def test_tab_completion_is_written(tmp_path) -> None:
    """For every command and option."""
    with pytest.raises(SystemExit) as stop:
        main(["--tyro-write-completion", "bash", str(tmp_path / "completion")])
    assert not stop.value.code
    written = (tmp_path / "completion").read_text()
    assert "export-inference" in written
    assert "--pause-after" in written


def test_recipes_are_listed(capsys) -> None:
    """Every name is in the table: that of the task, or with one of its endings."""
    assert main(["recipes"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name in recipes.names():
        assert any(row and row[0] == name for row in rows) or any(
            name.endswith(ending) for row in rows for ending in row if ending.startswith("-")
        ), name


@pytest.mark.parametrize("name", recipes.names())
def test_every_setting_of_a_recipe_has_a_meaning(name: str) -> None:
    """And its path is one that --set takes."""
    recipe = recipes.get(name)
    described = describe(recipe)
    assert [path for path, _, meaning in described if not meaning] == []
    assert [path for path, *_ in described] == all_paths(recipe)
    assert recipes.override(recipe, {path: value for path, value, _ in described if value is not None}) == recipe


def test_show_prints_settings_that_set_can_change(capsys) -> None:
    """With the values after the change."""
    assert main(["show", "maze", "--set", "train.seed=7"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train.seed", "7"] in [row[:2] for row in rows]


def test_compare_shows_what_differs_and_draws_curves(tmp_path, capsys) -> None:
    """Settings that differ and last metrics, in the order of the runs; folders without a run are refused."""
    runs = [str(tmp_path / name) for name in "ab"]
    for seed, run in enumerate(runs):
        assert main(["train", "maze", "--out", run, "--logger", "none", "--set", *FAST, f"train.seed={seed}"]) == 0
    capsys.readouterr()
    picture = tmp_path / "curves.png"
    assert main(["compare", *runs, "--plot", str(picture)]) == 0
    rows = {row[0]: row[1:] for line in capsys.readouterr().out.splitlines() if (row := line.split())}
    assert rows["train.seed"] == ["0", "1"]
    assert rows["step"] == ["3", "3"]
    assert "model.noise" not in rows
    assert picture.read_bytes().startswith(b"\x89PNG")
    for wrong, says in (
        ([runs[0]], "at least two"),
        ([*runs, str(tmp_path)], "no checkpoint here"),
        ([*runs, "--plot", str(tmp_path / "curves.txt")], "ends in .png"),
        ([*runs, "--plot", str(picture), "--metric", "los"], "no run has the metric 'los'"),
    ):
        assert main(["compare", *wrong]) == 2
        assert says in capsys.readouterr().err


def test_a_folder_with_a_run_says_how_to_continue(checkpoint, capsys) -> None:
    """Instead of calling a finished run a folder in use."""
    assert main(["train", "maze", "--out", str(checkpoint)]) == 2
    message = capsys.readouterr().err
    assert "continue its run with --resume" in message
    assert "--overwrite" in message


def test_a_paused_run_prints_the_command_that_resumes_it(tmp_path, capsys) -> None:
    """With all settings, so that it works as it is."""
    out, settings = (
        str(tmp_path / "a run"),
        [*FAST, "train.num_steps=100000"],
    )
    arguments = ["train", "maze", "--out", out, "--logger", "none", "--pause-after", "0.1", "--set", *settings]
    assert main(arguments) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("paused; "))
    command = shlex.split(line.partition(": ")[2])
    assert command[:3] == ["attractor", "train", "maze"]
    assert main([*command[1:], "--pause-after", "0.1"]) == 0


def mistakes(tmp_path, checkpoint, maze_file) -> dict[str, tuple[list[str], str]]:
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").write_text("precious")
    bad = tmp_path / "bad.txt"
    bad.write_text("#####\n#S G#\n##x##\n")
    walled = tmp_path / "walled.txt"
    walled.write_text("#####\n#S G#\n#####\n\n#####\n#S#G#\n#####\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    solve = ["solve", str(checkpoint)]
    return {
        "folder in use": (["demo", "--out", str(used)], "not empty"),
        "out is a file": (["demo", "--out", str(bad)], "is a file"),
        "unknown recipe": (["train", "mase"], "did you mean 'maze'"),
        "unknown setting": (["train", "maze", "--set", "train.sede=1"], "did you mean 'train.seed'"),
        "bad value": (["train", "maze", "--set", "train.seed=x"], "must be int"),
        "nothing to resume": (["train", "maze", "--resume", "--out", str(empty)], "no checkpoint"),
        "no checkpoint": (["solve", str(empty), str(maze_file)], "no checkpoint"),
        "no maze file": ([*solve, str(tmp_path / "none.txt")], "cannot be read"),
        "malformed maze": ([*solve, str(bad)], "line 3, column 3"),
        "walled in": ([*solve, str(walled)], "line 5: this maze has no path from S to G"),
        "zero depth": ([*solve, str(maze_file), "--depth", "0"], "depth=0"),
        "zero tolerance": ([*solve, str(maze_file), "--tolerance", "0"], "positive"),
        "zero breadth": ([*solve, str(maze_file), "--breadth", "0"], "breadth=0"),
        "negative steps": (["train", "maze", "--set", "train.num_steps=-5"], "num_steps=-5"),
        "zero width": (["train", "maze", "--set", "model.update.width=0"], "width=0"),
        "no mazes": (["train", "maze", "--set", "data.num_puzzles=0"], "num_puzzles=0"),
        "zero minutes": (["demo", "--minutes", "0", "--out", str(tmp_path / "x")], "minutes"),
    }


@pytest.mark.parametrize(
    "name",
    [
        "folder in use", "out is a file", "unknown recipe", "unknown setting", "bad value", "nothing to resume",
        "no checkpoint", "no maze file", "malformed maze", "zero tolerance", "zero breadth", "zero minutes",
        "negative steps", "zero width", "no mazes", "walled in", "zero depth",
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_exit_code_2(name: str, tmp_path, checkpoint, maze_file, capsys) -> None:
    """No traceback, nothing touched."""
    arguments, says = mistakes(tmp_path, checkpoint, maze_file)[name]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert (tmp_path / "used" / "thesis.tex").read_text() == "precious"
