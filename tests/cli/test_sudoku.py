"""Sudokus on the command line: train, solve, evaluate, and one sentence for everything that cannot be."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from attractor.cli import main
from attractor.cli.solve import draw
from attractor.data import maze, puzzles, sudoku
from attractor.experiment.loading import load_reasoner
from attractor.experiment.solve import solve_puzzles
from attractor.models.reasoning import AttractorReasoner

FAST = [
    "data.size=4",
    "data.clues=6",
    "data.num_puzzles=8",
    "model.update.network.width=16",
    "model.update.network.hidden=16",
    "supervision.batch_size=4",
    "train.seconds=null",
    "train.num_steps=3",
    "train.precision=fp32",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of puzzles of four digits."""
    folder = tmp_path_factory.mktemp("data") / "sudoku"
    train = sudoku.generate(12, size=4, clues=6, seed=0)
    puzzles.write(folder, {"train": train, "test": sudoku.generate(5, size=4, clues=6, seed=1, exclude=train)})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A reasoner of Sudokus of four digits that has hardly learnt anything."""
    out = tmp_path_factory.mktemp("run") / "run"
    assert main(["train", "sudoku/6x6", "--out", str(out), "--logger", "none", "--set", *FAST]) == 0
    return out


@pytest.fixture(scope="module")
def puzzle(data):
    return "".join(map(str, puzzles.read(data, "test").questions[0].reshape(-1)))


@pytest.mark.parametrize("how", ["line", "drawn", "csv", "text"])
def test_puzzles_come_in_a_line_a_drawing_a_csv_or_a_file(how, run, puzzle, tmp_path, monkeypatch, capsys) -> None:
    """Each prints the board, a verdict, the residual, evaluations and time."""
    grid = sudoku.parse(puzzle)
    given = str(tmp_path / f"puzzle.{'csv' if how == 'csv' else 'txt'}")
    if how == "line":
        given = puzzle
    elif how == "drawn":
        monkeypatch.setattr("sys.stdin", io.StringIO(sudoku.render(grid)))
        given = "-"
    elif how == "csv":
        answer = "".join(map(str, sudoku.solve(grid).reshape(-1)))
        (tmp_path / "puzzle.csv").write_text(f"source,question,answer,rating\nme,{puzzle},{answer},0\n")
    else:
        (tmp_path / "puzzle.txt").write_text(f"{puzzle}\n{puzzle}\n")
    code = main(["solve", str(run), given, "--depth", "6"])
    out = capsys.readouterr().out
    assert code == int("wrong:" in out)
    assert out.count("6 evaluations") == (2 if how == "text" else 1)
    assert "residual" in out
    assert "wrong:" in out or "verified: solved" in out


@pytest.mark.parametrize("is_right", [True, False])
def test_a_wrong_answer_marks_the_clash_and_fails(is_right: bool, run, puzzle, monkeypatch, capsys) -> None:
    """A sentence names the cells, they are red, and the exit code is 1; a right answer has none of this."""
    question = sudoku.parse(puzzle)
    answer = sudoku.solve(question)
    blanks = np.argwhere(question[0] == 0)[:, 0] if (question[0] == 0).any() else [0]
    if not is_right:
        answer[0, blanks[0]] = answer[0, blanks[0] - 1]
    probabilities = torch.nn.functional.one_hot(torch.from_numpy(answer).long(), 5).float()[None]
    monkeypatch.setattr(AttractorReasoner, "decode", lambda *_: (9 * probabilities, None))
    [solution] = solve_puzzles(load_reasoner(run), puzzle, depth=1)
    red = [span for span in draw(sudoku.SUDOKU, solution).spans if "red" in str(span.style)]
    assert main(["solve", str(run), puzzle, "--depth", "1"]) == int(not is_right)
    printed = capsys.readouterr().out
    assert ("verified" in printed) == is_right
    if is_right:
        assert not red
    else:
        places = {(0, blanks[0]), (0, (blanks[0] - 1) % 4)}
        assert places <= set(solution.wrong_cells)
        assert len(red) == len(solution.wrong_cells)
        assert "twice in row 1: at row 1, column " in printed or "changes the given" in printed


def test_the_trajectory_is_animated(run, puzzle, tmp_path) -> None:
    """With one frame per depth."""
    assert main(["solve", str(run), puzzle, "--depth", "4", "--gif", str(tmp_path / "board.gif")]) in (0, 1)
    with Image.open(tmp_path / "board.gif") as image:
        assert image.n_frames > 3


@pytest.mark.parametrize("name", ["board.png", "board", "nowhere/board.gif"])
def test_an_animation_that_cannot_be_written_is_refused_first(name: str, run, puzzle, tmp_path, capsys) -> None:
    """Before anything is solved."""
    assert main(["solve", str(run), puzzle, "--gif", str(tmp_path / name)]) == 2
    printed = capsys.readouterr()
    assert "--gif" in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("1.1........4.2..", "the digit 1 twice"),
        ("................", "several solutions"),
        ("123....4........", "no solution"),
        ("123", "3 cells"),
        ("of six digits", "of size 6 has 7 symbols, and the model knows 5"),
        ("nothing.txt", "nothing.txt"),
        ("1...x", "cannot be read"),
        ("1..x......4.2...", "unexpected 'x'"),
        ("\n".join(["1..x"] + ["...."] * 99), "unexpected 'x'"),
    ],
)
def test_invalid_puzzles_are_refused_before_any_is_solved(given: str, says: str, run, capsys) -> None:
    """Contradictions, ambiguity, lengths, other sizes and files: one sentence and exit code 2."""
    if given == "of six digits":
        given = "".join(map(str, sudoku.generate(1, size=6, seed=0).questions.reshape(-1)))
    assert main(["solve", str(run), given]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert "residual" not in printed.out


def csv(file, data, *more) -> str:
    """Puzzles, and more rows, as a csv; the ratings are 0, 1, …"""
    rows = [(q, a) for q, a in zip(data.questions, data.answers, strict=True)] + list(more)
    lines = ["me," + ",".join("".join(map(str, g.reshape(-1))) for g in row) + f",{k}" for k, row in enumerate(rows)]
    file.write_text("source,question,answer,rating\n" + "\n".join(lines) + "\n")
    return str(file)


def test_an_error_names_the_line(run, data, puzzle, tmp_path, monkeypatch, capsys) -> None:
    """In a text, in a csv with empty lines, in standard input, and for a puzzle that the model does not accept."""
    test = puzzles.read(data, "test")
    open_grid, foreign = "." * 16, "".join(map(str, sudoku.generate(1, size=6, seed=0).questions.reshape(-1)))
    file = tmp_path / "puzzles.txt"
    file.write_text(f"{puzzle}\n\n{open_grid}\n")
    table = csv(tmp_path / "puzzles.csv", test, (test.questions[0] * 0, test.answers[0]))
    for given, typed, place in [
        (str(file), "", f"{file}, line 3: this puzzle has several solutions"),
        (table, "", f"{table}, line {len(test) + 2}: this puzzle has several solutions"),
        ("-", f"{puzzle}\n{open_grid}", "standard input, line 2: this puzzle has several solutions"),
        ("-", f"{puzzle}\n{foreign}", "standard input, line 2: this puzzle of size 6"),
    ]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert main(["solve", str(run), given]) == 2
        printed = capsys.readouterr()
        assert place in printed.err
        assert not printed.out


def test_a_grid_of_another_size_is_refused_by_a_mixer(tmp_path, monkeypatch, capsys) -> None:
    """Before anything is solved, with its line and the size that the model needs."""
    out = tmp_path / "run"
    settings = [s for s in FAST if not s.startswith(("data.size", "data.clues"))]
    assert main(["train", "sudoku/6x6", "--out", str(out), "--logger", "none", "--set", *settings]) == 0
    small = "".join(map(str, sudoku.generate(1, size=4, seed=0).questions.reshape(-1)))
    monkeypatch.setattr("sys.stdin", io.StringIO(small))
    capsys.readouterr()
    assert main(["solve", str(out), "-"]) == 2
    printed = capsys.readouterr()
    assert "standard input, line 1: a grid of 4 × 4 cells: this model's mixer is built for grids of 36" in printed.err
    assert not printed.out


def test_many_puzzles_are_summarised(run, tmp_path, capsys) -> None:
    """At most ten wrong answers are printed, each with its line, and one line about all."""
    many = sudoku.generate(14, size=4, clues=6, seed=3)
    assert main(["solve", str(run), csv(tmp_path / "many.csv", many), "--depth", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 12
    assert "many.csv, line 2: wrong: " in lines[0]
    assert lines[-1].startswith("14 puzzles: ")
    assert "2 evaluations (median)" in lines[-1]


def test_the_animation_starts_from_the_initial_state_that_was_kept(run, puzzle, tmp_path, monkeypatch) -> None:
    """It ends with the answer that is printed, at the depth of the budget."""
    seen = {}

    def spy(frames, depths, residuals, **places) -> None:
        seen.update(frames=frames, depths=depths)

    monkeypatch.setattr("attractor.plots.plot_trajectory", spy)
    where = ["--gif", str(tmp_path / "board.gif"), "--tolerance", "1e-12"]
    model = load_reasoner(run).model
    question = torch.from_numpy(sudoku.parse(puzzle)).long()[None]
    chosen = []
    for seed in range(4):
        main(["solve", str(run), puzzle, "--max-evaluations", "9", "--breadth", "3", "--seed", str(seed), *where])
        settings = {"max_evaluations": 9, "tolerance": 1e-12, "breadth": 3}
        kept = model.solve(question, generator=torch.Generator().manual_seed(seed), **settings)
        for frame in seen["frames"][-2:]:  # the last but one is what follows from the start in as many steps
            torch.testing.assert_close(frame, kept.logits[0].softmax(dim=-1), atol=1e-4, rtol=1e-4)
        first = model.init_state(question, torch.Generator().manual_seed(seed))
        chosen.append(not torch.equal(first, kept.init_state))
    assert any(chosen)  # or nothing was tested
    main(["solve", str(run), puzzle, "--max-evaluations", "1100", *where])
    assert seen["depths"][-1] == 1100


def test_evaluate_prints_accuracy_by_depth_and_breadth(run, data, tmp_path, capsys) -> None:
    """By lowest residual and by majority, and writes the figures."""
    file = tmp_path / "figures.json"
    arguments = ["--data", str(data), "--depths", "1", "4", "--breadths", "1", "3", "--out", str(file)]
    for breadths in (["1"], ["1", "3"], [*map(str, range(1, 20))]):  # by default seven depths, and 80 columns
        assert main(["evaluate", str(run), "--data", str(data), "--limit", "2", "--breadths", *breadths]) == 0
        assert "…" not in capsys.readouterr().out
    assert main(["evaluate", str(run), *arguments]) == 0
    out = capsys.readouterr().out
    assert "right in every cell, in % of 5 unseen puzzles" in out
    assert "majority" in out
    assert "AUROC" in out
    figures = json.loads(file.read_text())["results"]
    assert figures["num_puzzles"] == 5
    assert np.shape(figures["exact_by_residual"]) == (2, 2)


def test_a_search_makes_every_answer_right(run, data, puzzle, tmp_path, capsys) -> None:
    """Of a model that has hardly learnt anything; the figures say what it cost, by rating too."""
    assert main(["solve", str(run), puzzle, "--search"]) == 0
    assert "verified: solved" in capsys.readouterr().out
    file, rated = tmp_path / "figures.json", csv(tmp_path / "rated.csv", puzzles.read(data, "test"))
    assert main(["evaluate", str(run), "--data", rated, "--search", "--depths", "2", "--out", str(file)]) == 0
    out = capsys.readouterr().out
    assert "search: 100.0 (56.6 to 100.0) %; evaluations per puzzle: mean" in out
    assert "2 to 8" in out
    figures = json.loads(file.read_text())["results"]
    assert figures["search"]["exact"] == 1
    assert 1 <= figures["search"]["evaluations"]["median"] <= figures["search"]["evaluations"]["max"] <= 2048
    assert [row["num_puzzles"] for row in figures["by_rating"]] == [1, 1, 3]
    assert [row["search"]["exact"] for row in figures["by_rating"]] == [1, 1, 1]
    by_hand = sum(row["one_start"]["exact"] * row["num_puzzles"] for row in figures["by_rating"])
    assert by_hand == pytest.approx(5 * figures["exact_by_residual"][0][0])


@pytest.mark.parametrize(
    ("option", "says"), [("--depth", "search replaces depth"), ("--breadth", "search replaces"), ("--gif", "guesses")]
)
def test_a_search_refuses_what_it_replaces(option: str, says: str, run, puzzle, tmp_path, capsys) -> None:
    """In one sentence, before anything is solved."""
    value = str(tmp_path / "board.gif") if option == "--gif" else "3"
    assert main(["solve", str(run), puzzle, "--search", option, value]) == 2
    assert says in capsys.readouterr().err


def test_mazes_cannot_be_searched(tmp_path, capsys) -> None:
    """For one maze, and for a folder of them."""
    mazes, file = maze.generate(2, 5, seed=0), tmp_path / "maze.txt"
    maze.write(file, [mazes.questions[0]])
    puzzles.write(tmp_path / "mazes", {"test": mazes})
    for command in (["solve", "maze", str(file)], ["evaluate", "maze", "--data", str(tmp_path / "mazes")]):
        assert main([*command, "--search"]) == 2
        assert "search guesses digits of Sudokus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--data"),
        (["--data", "{data}", "--depths", "4", "1"], "rising"),
        (["--data", "{data}", "--breadths", "0"], "rising"),
        (["--data", "{data}", "--depth", "3"], "depth is for language models"),
        (["--data", "{data}", "--max-evaluations", "3"], "max_evaluations is for language models"),
        (["--data", "{data}", "--tolerance", "0.1"], "tolerance is for language models"),
        (["--data", "{data}", "--length", "3"], "length is for language models"),
        (["--data", "{data}", "--stride", "3"], "stride is for language models"),
        (["--data", "{data}", "--field", "body"], "field is for language models"),
        (["--data", "{data}", "--tasks", "core"], "tasks is for language models"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_evaluations_that_cannot_be_are_refused(arguments: list[str], says: str, run, data, capsys) -> None:
    assert main(["evaluate", str(run), *(a.format(data=data) for a in arguments)]) == 2
    assert says in capsys.readouterr().err


def test_training_reads_a_folder_and_resumes_exactly(data, tmp_path) -> None:
    """Two parts of a run give the weights of one run."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = ["--data", str(data), "--logger", "none", "--set", *FAST[3:-2], "train.precision=fp32"]
    assert (
        main(
            ["train", "sudoku/6x6", "--out", str(whole), *settings, "train.num_steps=6", "train.cooldown_fraction=1e-9"]
        )
        == 0
    )
    assert (
        main(["train", "sudoku/6x6", "--out", str(cut), *settings, "train.num_steps=3", "train.cooldown_fraction=1e-9"])
        == 0
    )
    assert (
        main(
            [
                "train",
                "sudoku/6x6",
                "--out",
                str(cut),
                "--resume",
                *settings,
                "train.num_steps=6",
                "train.cooldown_fraction=1e-9",
            ]
        )
        == 0
    )
    a, b = (load_reasoner(out).model.state_dict() for out in (whole, cut))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_recipe_takes_its_size_from_the_puzzles(data, tmp_path, capsys) -> None:
    """Symbols and the cells of a mixer follow. Puzzles of another kind are refused."""
    assert main(["train", "maze", "--data", str(data), "--out", str(tmp_path / "a")]) == 2
    assert "this recipe needs maze" in capsys.readouterr().err
    command = ["train", "sudoku/9x9", "--data", str(data), "--out", str(tmp_path / "b"), "--logger", "none"]
    assert main([*command, "--set", *FAST[3:]]) == 0
    assert load_reasoner(tmp_path / "b").size == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["data.num_puzzles=5"], "with --data FOLDER leave them out"),
        (["supervision.replace_halted=true"], "model.halting=true"),
    ],
)
def test_settings_without_effect_are_refused(settings: list[str], says: str, data, tmp_path, capsys) -> None:
    """They are not ignored."""
    assert main(["train", "sudoku/6x6", "--data", str(data), "--out", str(tmp_path / "run"), "--set", *settings]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_puzzles_is_refused(data, tmp_path, capsys) -> None:
    """Also if number, kind and size are the same."""
    other = tmp_path / "other"
    train = sudoku.generate(12, size=4, clues=6, seed=5)
    puzzles.write(other, {"train": train, "test": train})
    command = ["train", "sudoku/6x6", "--out", str(tmp_path / "run"), "--logger", "none"]
    assert main([*command, "--data", str(data), "--set", *FAST[3:]]) == 0
    assert main([*command, "--data", str(other), "--resume", "--set", *FAST[3:], "train.num_steps=4"]) == 2
    assert "puzzles.checksum is" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["-trm", "-hrm", "-transformer"])
def test_baselines_train_and_solve(family: str, tmp_path, data, capsys) -> None:
    """By the names of their recipes. More than one restart is refused, because their initial state is fixed."""
    cells = "model.update.network" if family == "-trm" else "model.network"
    small = [setting.replace("model.update.network", cells) for setting in FAST]
    out = tmp_path / "run"
    assert main(["train", f"sudoku/6x6{family}", "--out", str(out), "--logger", "none", "--set", *small]) == 0
    assert main(["evaluate", str(out), "--data", str(data), "--depths", "1", "2"]) == 0
    capsys.readouterr()
    puzzle = "".join(map(str, puzzles.read(data, "test").questions[0].reshape(-1)))
    for command in (
        ["solve", str(out), puzzle, "--breadth", "2"],
        ["evaluate", str(out), "--data", str(data), "--breadths", "1", "2"],
    ):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert "restarts change nothing" in printed.err
        assert not printed.out
