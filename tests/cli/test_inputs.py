"""Bad input to the command line: one sentence, exit code 2, nothing half-written; foreign text never controls the terminal."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from attractor.cli import main
from attractor.cli.output import add_row, make_table, say, show
from attractor.data import MAZE, SUDOKU, puzzles, sudoku
from attractor.errors import AttractorError, DataError, printable
from attractor.experiment.environment import environment
from attractor.experiment.solve import locate_puzzles
from attractor.files import checksum, read_json, write_json

LINE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What the command printed about the error: one line without control characters."""
    error = capsys.readouterr().err
    assert error.startswith("attractor: "), error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert printable(error[:-1]) == error[:-1]
    return error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--minutes", "nan"], "--minutes=nan: give a finite number"),
        (["demo", "--minutes", "inf"], "--minutes=inf"),
        (["demo", "--seed", "9" * 30], "--seed is too large"),
        (["train", "maze", "--pause-after", "nan"], "--pause-after=nan"),
        (["train", "maze", "--set", "train.optimizer.weight_decay=NaN"], "weight_decay=nan: give a finite number"),
        (["train", "maze", "--set", "model.noise=1e999"], "noise=inf"),
        (["train", "maze", "--set", "train.seed=" + "9" * 5000], "train.seed must be int"),
        (["train", "maze", "--set", "train.seed=" + "[" * 100_000], "train.seed must be int"),
        (["train", "maze", "--set", "train.seed=" + "9" * 40], "train.seed is too large"),
        (["train", "[/x]\x1b[31m\n"], "there is no recipe '[/x]\\x1b[31m\\n'"),
        (["generate", "none", "--prompt", "a", "--temperature", "nan"], "--temperature=nan"),
        (["retrofit", "none", "out", "--gate-limit", "inf"], "--gate-limit=inf"),
        (["solve", "a\0b", LINE], "null character"),
        (["solve", "x" * 300, LINE], "xxx"),
        (["solve", "[/x]\x1b[2J", LINE], "[/x]\\x1b[2J"),
        (["data", "verify", "a\nb"], "a\\nb"),
        (["train", "maze", "--set", "model.type=[1,2]"], "type=[1, 2] is unknown"),
        (["train", "maze", "--set", 'model.type={"a": 1}'], "type={'a': 1} is unknown"),
        (["data", "sudoku", "--out", "x" * 300 + "/a", "--size", "4", "--num", "1", "--num-test", "1"], "xxx"),
        (["data", "sudoku", "--out", "s", "--num", "1" * 25], "--num is too large"),
    ],
)
def test_bad_options_are_one_sentence(arguments, says, tmp_path, monkeypatch, capsys) -> None:
    """Numbers that are not finite, names that are too long or hold control characters, JSON that cannot be read."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert says in one_sentence(capsys)
    assert not list(tmp_path.iterdir())


def test_pipes_and_unreadable_paths_are_refused(tmp_path, monkeypatch, capsys) -> None:
    """A named pipe is not opened, because it may never end. Loops of links are no folder."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    assert main(["solve", "pipe", LINE]) == 2
    assert "named pipe" in one_sentence(capsys)
    for command in (
        ["solve", "loop", LINE],
        ["data", "prepare", "x.txt", "--val", "loop", "--out", "out"],
        ["export", "loop", "out", "--depth", "1"],
        ["cost", "maze", "--no-measure", "--out", "loop"],
    ):
        assert main(command) == 2
        assert "loop" in one_sentence(capsys) or command[0] == "data"


def test_unexpected_errors_are_one_sentence(monkeypatch, capsys) -> None:
    """They ask for a report; --debug adds the traceback. Missing memory and unreadable files are not the project's."""

    def fail(error: Exception) -> None:
        def run(name: str) -> None:
            raise error

        monkeypatch.setattr(sys.modules["attractor.cli.commands"], "commands", lambda: {"a": run, "b": run})

    fail(KeyError("x\x1b"))
    assert main(["a", "--name", "1"]) == 1
    assert "unexpected KeyError ('x\\x1b')" in one_sentence(capsys)
    assert main(["--debug", "a", "--name", "1"]) == 1
    assert "Traceback" in capsys.readouterr().err
    fail(PermissionError(13, "Permission denied", "secret\n"))
    assert main(["a", "--name", "1"]) == 2
    assert "secret\\n: Permission denied" in one_sentence(capsys)
    fail(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert main(["a", "--name", "1"]) == 2
    assert "not enough memory" in one_sentence(capsys)


def test_foreign_text_is_escaped(capsys) -> None:
    """In errors, lines and tables: control characters, line breaks and reversed text; other scripts stay."""
    evil = "a\x1b[31m\n\x9b\u202e[/x][bold]é中"
    shown = "a\\x1b[31m\\n\\x9b\\u202e[/x][bold]é中"
    assert printable(evil) == shown
    assert printable("a\tb\nc", keep="\t\n") == "a\tb\nc"
    assert str(AttractorError(evil)) == str(DataError(evil)) == shown
    say(evil)
    table = make_table(("name",))
    add_row(table, evil)
    show(table)
    out = capsys.readouterr().out
    assert out.count(shown) == 2
    assert "\x1b" not in out


def test_usage_errors_escape_what_they_repeat(capsys) -> None:
    """Names of files, which a shell puts in place of "*", may hold escape sequences."""
    with pytest.raises(SystemExit):
        main(["export", "model", "out", "--depth", "1", "a\x1b[2J.txt", "--x\x9b"])
    error = capsys.readouterr().err
    assert "a\\x1b[2J.txt" in error
    assert printable(error, keep="\n\t") == error


def test_an_output_that_is_refused_leaves_no_folders(tmp_path, monkeypatch, capsys) -> None:
    """Also the parents that were made for it."""
    monkeypatch.chdir(tmp_path)
    assert main(["data", "sudoku", "--out", "new/..", "--size", "4", "--num", "2", "--num-test", "2"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_no_utf8_is_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    """Where a library cannot write to it; nothing is left."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the sea and the moon " * 50)
    command = ["data", "prepare", "text.txt", "--out", "\udc80", "--vocab-size", "258", "--val-fraction", "0"]
    assert main(command) == 2
    assert "\\udc80: cannot be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("size", ["1234123412341234", "10000001"])
def test_a_vocabulary_that_no_memory_holds_is_one_sentence(size: str, tmp_path, monkeypatch, capsys) -> None:
    """The library would end the process."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the sea and the moon " * 50)
    command = ["data", "prepare", "text.txt", "--out", "out", "--vocab-size", size, "--val-fraction", "0"]
    assert main(command) == 2
    assert "give at most 10,000,000" in one_sentence(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("place", ["test-questions.npy", "index.json", "checksums.json"])
def test_a_pipe_or_a_loop_among_puzzles_is_not_opened(place: str, tmp_path, capsys) -> None:
    """Reading it would never end."""
    folder = tmp_path / "puzzles"
    puzzles.write(folder, {name: sudoku.generate(2, size=4, seed=0) for name in ("train", "test")})
    (folder / place).unlink()
    os.mkfifo(folder / place)
    assert main(["data", "verify", str(folder)]) == 2
    assert place in one_sentence(capsys)
    (folder / place).unlink()
    (folder / place).symlink_to(place)
    assert main(["data", "verify", str(folder)]) == 2
    one_sentence(capsys)
    if place != "checksums.json":  # which is read only to verify
        with pytest.raises(DataError):
            puzzles.read(folder, "test")


def test_an_environment_needs_no_git(monkeypatch) -> None:
    """Its commit is then unknown."""
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None


def test_an_existing_file_is_read_whatever_its_name(tmp_path, monkeypatch) -> None:
    """Also with 16 or 81 characters, or digits only; a csv may be called .CSV; a missing file is called missing."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for name in ("data/sudoku9.txt", "data/sudokus9.txt", "2026-11", "123456789", "1" * 81, "x" * 36):
        Path(name).write_text(LINE)
        [located] = locate_puzzles(SUDOKU, name)
        assert located.place == f"{name}, line 1"
    Path("A.CSV").write_text(f"source,question,answer,rating\nme,{LINE},{ANSWER},0\n")
    assert locate_puzzles(SUDOKU, "A.CSV")[0].place == "A.CSV, line 2"
    assert len(SUDOKU.read_table("A.CSV")) == 1
    for name in ("data/sudoku8.txt", "none" * 9):
        with pytest.raises(DataError, match="cannot be read"):
            locate_puzzles(SUDOKU, name)


def test_a_csv_needs_no_answers_to_be_solved(tmp_path) -> None:
    """One column is enough for questions; preparation needs all."""
    file = tmp_path / "a.csv"
    file.write_text(f"question\n{LINE}\n{LINE}\n")
    assert [located.place for located in SUDOKU.read(file)] == [f"{file}, line 2", f"{file}, line 3"]
    with pytest.raises(DataError, match="no column 'answer'"):
        SUDOKU.read_table(file)
    file.write_text("question,id\n#####" + "#S G#" + "#####" * 3 + ",7\n")
    assert MAZE.read(file)[0].grid.shape == (5, 5)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_a_dash_may_be_a_blank(size: int) -> None:
    """In a line, and in the rows of a drawing with or without lines between its boxes."""
    for question in sudoku.generate(3, size=size, seed=0).questions:
        drawing = sudoku.render(question)
        line = "".join(map(str, question.flat))
        for text in (
            line.replace("0", "-"),
            drawing,
            drawing.replace(".", "-"),
            "\n".join("".join(str(d) if d else "-" for d in row) for row in question if row.any())
            if question.any(axis=1).all()
            else line,
        ):
            [located] = SUDOKU.parse(text)
            np.testing.assert_array_equal(located.grid, question)


def test_mazes_with_an_open_border_are_drawings(tmp_path) -> None:
    """They are read as a csv of the same mazes is; a row of spaces is a row if its neighbour is as long."""
    grids = [["S  ", " # ", "  G"], ["   ", "S#G", "   "], ["#####", "S   G", "#####"]]
    text = "\n\n".join("\n".join(rows) for rows in grids)
    found = MAZE.parse(text)
    assert [MAZE.render(located.grid).split("\n") for located in found] == grids
    for located in found:
        MAZE.check(located.grid)
    file = tmp_path / "a.csv"
    file.write_text("question\n" + "".join(grids[1]) + "\n")
    np.testing.assert_array_equal(MAZE.read(file)[0].grid, found[1].grid)


def test_a_folder_with_right_checksums_and_wrong_content_is_refused(tmp_path) -> None:
    """No array, another type, values that no cell has, other shapes, fields of other types."""
    made = sudoku.generate(3, size=4, seed=0)
    file = tmp_path / "a" / "train-questions.npy"

    def check(content: bytes | np.ndarray | None, **fields: object) -> None:
        folder = tmp_path / "a"
        puzzles.write(folder, {"train": made})
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            np.save(file, content, allow_pickle=True)
        index = read_json(folder / "index.json", DataError) | fields
        if not fields:
            index["splits"]["train"]["files"]["questions"] = checksum(file)
        write_json(folder / "index.json", index)
        with pytest.raises(DataError) as caught:
            puzzles.read(folder, "train")
        assert "a/" in str(caught.value) or "a:" in str(caught.value) or "give" in str(caught.value)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    for content in (
        b"",
        b"no array",
        made.questions.astype(float),
        np.full((3, 4, 4), 200, np.uint8),
        np.zeros((0, 4, 4), np.uint8),
        np.array([{}], dtype=object),
        made.questions[:2],
    ):
        check(content)
    for fields in ({"height": "4"}, {"kind": []}, {"splits": {"train": 3}}, {"splits": {"train": {"files": []}}}):
        check(None, **fields)
