"""``attractor data sudoku`` and ``data mazes``: drawn or from csv, test apart from training, and a mistake is one
sentence.
"""

from pathlib import Path

import numpy as np
import pytest

from attractor.cli import main
from attractor.data import PuzzleSet, maze, puzzles, sudoku


def table(file: Path, data: PuzzleSet) -> Path:
    """PuzzleSet as others' csv."""
    lines = ["source,question,answer,rating"]
    for number, pair in enumerate(zip(data.questions, data.answers, strict=True)):
        question, answer = ("".join(data.alphabet[value] for value in grid.reshape(-1)) for grid in pair)
        lines.append(f"me,{question},{answer},{number}")
    file.write_text("\n".join(lines) + "\n")
    return file


def tables(folder: Path, kind: str) -> tuple[Path, Path]:
    """A training csv of 20 puzzles, and a test csv of 6, of which two are copies of training puzzles."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    if kind == "sudoku":
        drawn = sudoku.generate(24, size=6, seed=0)
        copies = sudoku.augment(drawn.questions[:2], drawn.answers[:2], rng)
    else:
        drawn = maze.generate_walls(24, 8, seed=0)
        # Turned by hand: symmetry 0 of 8 would leave them as they are.
        copies = tuple(
            np.ascontiguousarray(np.rot90(part[:2], axes=(1, 2))) for part in (drawn.questions, drawn.answers)
        )
    test = PuzzleSet(
        kind=kind,
        questions=np.concatenate([drawn.questions[20:], copies[0]]),
        answers=np.concatenate([drawn.answers[20:], copies[1]]),
    )
    return table(folder / "train.csv", drawn[:20]), table(folder / "test.csv", test)


@pytest.mark.parametrize("kind", ["sudoku", "maze"])
def test_copies_of_training_puzzles_are_left_out(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line counts them. All other puzzles stay, with their ratings."""
    train, test = tables(tmp_path / "csv", kind)
    out = tmp_path / "out"
    command = {"sudoku": "sudoku", "maze": "mazes"}[kind]
    assert main(["data", command, "--out", str(out), "--train", str(train), "--test", str(test)]) == 0
    printed = capsys.readouterr().out
    assert "2 test puzzles are symmetric copies of training puzzles, and were left out." in printed
    kept = puzzles.read(out, "test")
    assert len(puzzles.read(out, "train")) == 20
    assert kept.ratings is not None
    assert kept.ratings.tolist() == [0, 1, 2, 3]
    assert puzzles.read_index(out)["metadata"]["train"] == str(train)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["csv", "out"]


def test_a_sample_of_a_csv_depends_on_the_seed(tmp_path: Path) -> None:
    """A larger sample contains the smaller ones, in order. Another seed gives another sample."""
    train, test = tables(tmp_path / "csv", "sudoku")

    def sample(num: int, seed: int) -> list[int]:
        out = tmp_path / f"{num}-{seed}"
        arguments = ["--train", str(train), "--test", str(test), "--num-train", str(num), "--seed", str(seed)]
        assert main(["data", "sudoku", "--out", str(out), *arguments]) == 0
        ratings = puzzles.read(out).ratings
        assert ratings is not None
        return [int(rating) for rating in ratings]

    few, more, other = sample(5, 1), sample(9, 1), sample(5, 2)
    dev = puzzles.read(tmp_path / "9-1", "dev")
    assert dev.ratings is not None
    assert len(dev) == 1
    assert not set(dev.ratings.tolist()) & set(more)  # training puzzles outside the sample
    assert len(few) == 5
    assert few == sorted(few)
    assert set(few) < set(more)
    assert few != other


def test_sudokus_are_generated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the given size and clues, no copies between the splits, the same for one seed, and a table of counts."""
    asked = ["--size", "6", "--num", "30", "--num-test", "20", "--clues", "12"]
    for name in ("one", "two"):
        assert main(["data", "sudoku", "--out", str(tmp_path / name), *asked, "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "6×6" in printed
    assert "12.0" in printed
    train, test, dev = (puzzles.read(tmp_path / "one", split) for split in ("train", "test", "dev"))
    assert (len(train), len(test), len(dev)) == (30, 20, 3)
    assert len(sudoku.equivalent_pairs(dev, train + test)) == 0
    line = "".join(test.alphabet[value] for value in test.questions[0].flat)
    assert f"attractor solve runs/sudoku/6x6 {line}\n" in printed
    assert ((train.questions > 0).sum(axis=(1, 2)) == 12).all()
    assert sudoku.solves(test.questions, test.answers).all()
    assert len(sudoku.equivalent_pairs(test, train)) == 0
    np.testing.assert_array_equal(train.questions, puzzles.read(tmp_path / "two").questions)
    assert puzzles.read_index(tmp_path / "one")["metadata"] == {
        "size": 6,
        "num": 30,
        "num_test": 20,
        "clues": 12,
        "seed": 3,
    }


@pytest.mark.parametrize(("style", "size"), [("perfect", 9), ("walls", 10)])
def test_mazes_are_generated(style: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the given style, size and bounds, and no copies between the splits. A maze to try is printed."""
    out = tmp_path / "out"
    asked = [
        "--style",
        style,
        "--size",
        str(size),
        "--num",
        "30",
        "--num-test",
        "20",
        "--min-path",
        "8",
        "--max-path",
        "14",
    ]
    assert main(["data", "mazes", "--out", str(out), *asked]) == 0
    train, test = (puzzles.read(out, split) for split in ("train", "test"))
    drawn = capsys.readouterr().out.split("attractor solve runs/maze - <<'END'\n")[1].removesuffix("\nEND\n")
    np.testing.assert_array_equal(maze.parse(drawn), test.questions[0])
    assert (train.questions.shape, len(test)) == ((30, size, size), 20)
    steps = (train.answers == maze.Cell.PATH).sum(axis=(1, 2)) + 1
    assert steps.min() >= 8
    assert steps.max() <= 14
    assert not np.isin(maze.fingerprints(test.questions), maze.fingerprints(train.questions)).any()
    assert maze.valid_and_shortest(test.questions, test.answers).all()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "taken": (["sudoku", "--out", "TAKEN"], "exists already"),
    "train alone": (["sudoku", "--train", "TRAIN"], "give both train and test"),
    "test alone": (["mazes", "--test", "TEST"], "give both train and test"),
    "drawing from files": (
        ["sudoku", "--train", "TRAIN", "--test", "TEST", "--clues", "9"],
        "clues is for generated puzzles",
    ),
    "a sample of nothing": (["sudoku", "--num-train", "5"], "to generate puzzles give num"),
    "too large a sample": (["sudoku", "--train", "TRAIN", "--test", "TEST", "--num-train", "99"], "holds 20 puzzles"),
    "an empty sample": (["sudoku", "--train", "TRAIN", "--test", "TEST", "--num-train", "0"], "num_train=0"),
    "no test puzzle": (["sudoku", "--size", "4", "--num", "3", "--num-test", "0"], "num_test=0"),
    "a test of copies": (["sudoku", "--train", "TRAIN", "--test", "TRAIN"], "all 20 test puzzles are symmetric copies"),
    "no file": (["sudoku", "--train", "none.csv", "--test", "TEST"], "none.csv: no such csv file"),
    "other puzzles": (["mazes", "--train", "TRAIN", "--test", "TEST"], "line 2: the question has an unexpected"),
    "few clues": (
        ["sudoku", "--size", "6", "--clues", "7", "--num", "1"],
        "Only 0 of 1 different puzzles with 7 clues",
    ),
    "negative seed": (["sudoku", "--seed=-1"], "seed=-1"),
    "an even maze": (["mazes", "--size", "10"], "odd number"),
    "a long path": (["mazes", "--size", "7", "--min-path", "99"], "wider bounds"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_error_is_one_sentence_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2, and no folder is left."""
    train, test = tables(tmp_path, "sudoku")
    (tmp_path / "taken").mkdir()
    places = {"TRAIN": str(train), "TEST": str(test), "TAKEN": str(tmp_path / "taken")}
    arguments, says = MISTAKES[name]
    arguments = [places.get(a, a) for a in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken", "test.csv", "train.csv"]


def test_commands_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    """For the group and both commands."""
    for arguments, says in (
        (["--help"], "sudoku"),
        (["sudoku", "--help"], "--clues"),
        (["mazes", "--help"], "--min-path"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["data", *arguments])
        assert stop.value.code == 0
        assert says in capsys.readouterr().out


def test_verify_prints_a_summary_and_finds_a_flipped_bit(tmp_path, capsys) -> None:
    """The same command works for text."""
    folder = tmp_path / "sudoku"
    assert main(["data", "sudoku", "--out", str(folder), "--size", "4", "--num", "5", "--num-test", "3"]) == 0
    assert main(["data", "verify", str(folder)]) == 0
    assert "All checksums match" in capsys.readouterr().out
    file = folder / "test-answers.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(["data", "verify", str(folder)]) == 2
    assert "test-answers.npy" in capsys.readouterr().err


def test_a_test_split_is_not_the_training_split_of_another_seed(tmp_path) -> None:
    """A model trained with the next seed must not have seen these test puzzles."""
    folder = tmp_path / "sudoku"
    assert main(["data", "sudoku", "--out", str(folder), "--size", "6", "--num", "5", "--num-test", "40"]) == 0
    test = puzzles.read(folder, "test")
    for seed in range(3):
        other = sudoku.generate(40, size=6, seed=seed)
        assert len(sudoku.equivalent_pairs(test, other)) < 5
