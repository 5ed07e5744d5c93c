"""The folder that keeps puzzles, the csv of others' sets, and mazes with long paths."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from attractor.data import MAZE, SUDOKU, PuzzleSet, maze, puzzles, sudoku, table
from attractor.data.maze import ALPHABET, Cell, Grid
from attractor.errors import AttractorError, ConfigError, DataError


def rated() -> PuzzleSet:
    """Five 6 x 6 Sudokus with ratings."""
    drawn = sudoku.generate(5, size=6, seed=0)
    return PuzzleSet(
        kind="sudoku", questions=drawn.questions, answers=drawn.answers, ratings=np.arange(5, dtype=np.int32)
    )


def some_mazes(num: int = 4) -> PuzzleSet:
    return maze.generate_walls(num, 8, seed=0, min_path=4)


def line(grid: Grid, alphabet: str) -> str:
    return "".join(alphabet[value] for value in grid.reshape(-1))


def write_table(file: Path, data: PuzzleSet, header: str = "source,question,answer,rating") -> Path:
    rows = [
        f"me,{line(q, data.alphabet)},{line(a, data.alphabet)},{n}"
        for n, (q, a) in enumerate(zip(data.questions, data.answers, strict=True))
    ]
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


# The folder


@pytest.mark.parametrize("make", [rated, some_mazes])
def test_a_folder_is_read_as_it_was_written(make: Callable[[], PuzzleSet], tmp_path: Path) -> None:
    """Arrays are memory-mapped, and the index holds what a model must know."""
    data = make()
    out = tmp_path / "deep" / "out"
    puzzles.write(out, {"train": data[:3], "test": data[3:]}, metadata={"seed": 0})
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    for split, part in (("train", data[:3]), ("test", data[3:])):
        back = puzzles.read(out, split)
        assert isinstance(back.questions, np.memmap)
        assert back.kind == data.kind
        np.testing.assert_array_equal(back.questions, part.questions)
        np.testing.assert_array_equal(back.answers, part.answers)
        assert (back.ratings is None) == (part.ratings is None)
        if part.ratings is not None and back.ratings is not None:
            np.testing.assert_array_equal(back.ratings, part.ratings)
    index = puzzles.read_index(out)
    known = (
        index["kind"],
        index["height"],
        index["alphabet"],
        index["num_symbols"],
        index["num_classes"],
        index["metadata"],
    )
    sudokus, walls = ("sudoku", 6, ".123456", 7, 7, {"seed": 0}), ("maze", 8, "# SGo", 4, 5, {"seed": 0})
    assert known == (sudokus if data.kind == "sudoku" else walls)
    assert index["splits"]["train"]["num"] == 3


def test_puzzles_are_indexed_by_slices_and_arrays() -> None:
    """An index applies to questions, answers and ratings. Unknown kinds and wrong shapes and types are refused."""
    data = rated()
    some = data[np.array([4, 0])]
    assert len(data[1:3]) == 2
    np.testing.assert_array_equal(some.answers[0], data.answers[4])
    assert some.ratings is not None
    assert some.ratings.tolist() == [4, 0]
    q, a = data.questions, data.answers
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"kind": "chess", "questions": q, "answers": a}, "chess"),
        ({"kind": "sudoku", "questions": q, "answers": a[1:]}, "shapes"),
        ({"kind": "sudoku", "questions": q.astype(int), "answers": a}, "uint8"),
        ({"kind": "sudoku", "questions": q, "answers": a, "ratings": np.zeros(2, np.int32)}, "Ratings"),
    ]
    for arguments, says in wrong:
        with pytest.raises(DataError, match=says):
            PuzzleSet(**arguments)


@pytest.mark.parametrize("name", ["train-questions.npy", "train-answers.npy", "train-ratings.npy"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    """A flipped bit or a missing file raises a DataError that names the file."""
    out = tmp_path / "out"
    puzzles.write(out, {"train": rated()})
    raw = bytearray((out / name).read_bytes())
    for place in (0, len(raw) // 2, len(raw) - 1):
        (out / name).write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(DataError, match=rf"{name}: is not the file that was written"):
            puzzles.read(out)
    (out / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: cannot be read"):
        puzzles.read(out)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "not the index of puzzles"),
        ({"kind": "chess"}, "chess"),
        ({"height": 9}, "its index names 5 puzzles of 9 x 6"),
        ({"splits": []}, "is damaged"),
        ({"splits": {"train": {"num": 5}}}, "is damaged"),
    ],
)
def test_a_damaged_index_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    """With one sentence."""
    out = tmp_path / "out"
    puzzles.write(out, {"train": rated()})
    index = puzzles.read_index(out) | change
    (out / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=says):
        puzzles.read(out)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    """Without an index, with malformed JSON, and for an unknown split, for which the nearest name is suggested."""
    with pytest.raises(DataError, match="attractor data sudoku"):
        puzzles.read(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match="JSON"):
        puzzles.read(tmp_path)
    puzzles.write(tmp_path / "out", {"train": rated()})
    with pytest.raises(DataError, match="no split 'tain'; did you mean 'train'"):
        puzzles.read(tmp_path / "out", "tain")


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Existing paths, mixed or empty splits and invalid values are refused. An interrupt leaves nothing."""
    data, walls = rated(), some_mazes()
    puzzles.write(tmp_path / "out", {"train": data})
    high = PuzzleSet(kind="maze", questions=walls.answers, answers=walls.answers)  # a path in a question
    refused: list[tuple[str, dict[str, PuzzleSet], str]] = [
        ("out", {"train": data}, "exists already"),
        ("new", {"train": data, "test": walls}, "all of one kind"),
        ("new", {"train": data, "test": data[:0]}, "none empty"),
        ("new", {}, "nothing"),
        ("new", {"train": high}, "holds the value 4; the most is 3"),
    ]
    for name, splits, says in refused:
        with pytest.raises(AttractorError, match=says):
            puzzles.write(tmp_path / name, splits)

    def interrupt(*_: Any) -> None:
        assert not (tmp_path / "new").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(puzzles, "checksum", interrupt)
    with pytest.raises(KeyboardInterrupt):
        puzzles.write(tmp_path / "new", {"train": data})
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# The csv


@pytest.mark.parametrize(("make", "read"), [(rated, SUDOKU.read_table), (some_mazes, MAZE.read_table)])
def test_a_csv_is_read(
    make: Callable[[], PuzzleSet], read: Callable[..., PuzzleSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Completely, in one batch or in several."""
    data = make()
    file = write_table(tmp_path / "a.csv", data)
    for rows in (table._BATCH, 2):
        monkeypatch.setattr(table, "_BATCH", rows)
        back = read(file)
        assert back.kind == data.kind
        np.testing.assert_array_equal(back.questions, data.questions)
        np.testing.assert_array_equal(back.answers, data.answers)
        assert back.ratings is not None
        assert back.ratings.tolist() == list(range(len(data)))


def test_a_csv_is_downloaded_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is owner/name and the file SPLIT.csv. Without a network it is a DataError."""
    asked: list[Any] = []

    def download(name: str, file: str, *, repo_type: str) -> str:
        asked.append((name, file, repo_type))
        if file == "test.csv":
            raise RuntimeError("no network.\nand more")
        return str(write_table(tmp_path / file, rated()))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(SUDOKU.read_table("owner/name", "train")) == 5
    with pytest.raises(DataError, match=r"owner/name .*: test.csv cannot be fetched \(no network\)"):
        SUDOKU.read_table("owner/name", "test")
    assert asked == [("owner/name", "train.csv", "dataset"), ("owner/name", "test.csv", "dataset")]


def test_a_malformed_csv_is_reported_with_file_and_line(tmp_path: Path) -> None:
    """Wrong columns, lengths, characters, ratings and answers."""
    data, file = rated(), tmp_path / "a.csv"
    good = write_table(file, data).read_text().splitlines()
    question, answer = good[2].split(",")[1:3]

    def swapped(text: str, place: int, character: str) -> str:
        return text[:place] + character + text[place + 1 :]

    wrong_answer = swapped(answer, 35, "1" if answer[35] != "1" else "2")
    bad: list[tuple[int, str, str]] = [
        (0, "source,question,rating", "line 1: has no column 'answer' but source,question,rating"),
        (2, f"me,{question[:-1]},{answer},1", "line 3: the question has 35 characters; give 36"),
        (2, f"me,{question},{answer}.,1", "line 3: the answer has 37 characters; give 36"),
        (2, f"me,{question},{answer}", "line 3: has 3 fields"),
        (2, f"me,{swapped(question, 4, 'x')},{answer},1", "line 3: the question has an unexpected 'x' as character 5"),
        (2, f"me,{swapped(question, 4, '中')},{answer},1", "unexpected '中' as character 5"),
        (2, f"me,{swapped(question, 0, '9')},{answer},1", "line 3: the question has a digit above 6"),
        (2, f"me,{question},{wrong_answer},1", "line 3: the answer is wrong: the answer"),
        (2, f"me,{question},{answer},hard", "line 3: the rating 'hard' is no whole number"),
    ]
    for number, text, says in bad:
        file.write_text("\n".join([*good[:number], text, *good[number + 1 :]]) + "\n")
        with pytest.raises(DataError) as caught:
            SUDOKU.read_table(file)
        assert str(caught.value).startswith(str(file))
        assert says in str(caught.value)
    for text, says in (("", "line 1: has no column 'question' but nothing"), (good[0], "holds no puzzles")):
        file.write_text(text)
        with pytest.raises(DataError, match=says):
            SUDOKU.read_table(file)
    for source in ("none.csv", "a/b.csv", "no such thing"):
        with pytest.raises(DataError, match="no such csv file"):
            SUDOKU.read_table(source)


def test_a_csv_of_mazes_must_hold_shortest_paths(tmp_path: Path) -> None:
    """Longer paths, and questions without exactly one S, are reported with their line."""
    data, file = some_mazes(), tmp_path / "a.csv"
    for change, says in (
        ((Cell.PATH, Cell.FLOOR), "line 2: the answer is no shortest path"),
        ((Cell.START, Cell.FLOOR), "line 2: the question has not exactly one 'S'"),
    ):
        grids = [part.copy() for part in (data.questions, data.answers)]
        for part in grids:
            part[0][part[0] == change[0]] = change[1]
        write_table(file, PuzzleSet(kind="maze", questions=grids[0], answers=grids[1]))
        with pytest.raises(DataError, match=says):
            MAZE.read_table(file)
    write_table(file, PuzzleSet(kind="maze", questions=data.answers, answers=data.answers))
    with pytest.raises(DataError, match="line 2: the question marks a path"):
        MAZE.read_table(file)
    file.write_text("source,question,answer,rating\nme," + "#" * 10 + "," + "#" * 10 + ",1\n")
    with pytest.raises(DataError, match="line 2: the question has 10 characters; give a square number"):
        MAZE.read_table(file)


# Mazes with long paths, and how answers to them are scored


def steps_by_scipy(grid: Grid) -> int:
    floor = np.pad(grid != Cell.WALL, 1)
    index = np.arange(floor.size).reshape(floor.shape)
    pairs = [
        (index[:, :-1], index[:, 1:], floor[:, :-1] & floor[:, 1:]),
        (index[:-1], index[1:], floor[:-1] & floor[1:]),
    ]
    one = np.concatenate([a[both] for a, _, both in pairs])
    other = np.concatenate([b[both] for _, b, both in pairs])
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(floor.size, floor.size)).tocsr()
    start, goal = (int(np.flatnonzero(np.pad(grid, 1) == cell)[0]) for cell in (Cell.START, Cell.GOAL))
    return int(shortest_path(graph, directed=False, unweighted=True, indices=start)[goal])


@pytest.mark.parametrize(
    ("generate", "size", "bounds"),
    [
        (maze.generate_walls, 30, (111, None)),
        (maze.generate_walls, 12, (20, 25)),
        (maze.generate_walls, 7, (1, 3)),
        (maze.generate, 31, (100, 140)),
        (maze.generate, 9, (12, None)),
    ],
)
def test_paths_keep_their_bounds(generate: Callable[..., PuzzleSet], size: int, bounds: tuple[int, int | None]) -> None:
    """SciPy measures the same lengths. The same seed gives the same mazes."""
    drawn = generate(6, size, seed=3, min_path=bounds[0], max_path=bounds[1])
    assert drawn.questions.shape == (6, size, size)
    for question, answer in zip(drawn.questions, drawn.answers, strict=True):
        steps = steps_by_scipy(question)
        assert bounds[0] <= steps <= (bounds[1] or size**2)
        assert (answer == Cell.PATH).sum() == steps - 1
        np.testing.assert_array_equal(maze.parse(maze.render(question)), question)
    fewer = generate(2, size, seed=3, min_path=bounds[0], max_path=bounds[1])
    np.testing.assert_array_equal(fewer.questions, drawn.questions[:2])


def test_random_walls_have_their_share_of_floor() -> None:
    """The share counts inner cells. Neither S nor G is always at a dead end."""
    drawn = maze.generate_walls(300, 20, seed=0, floor=0.7)
    floor = drawn.questions != Cell.WALL
    assert abs(floor[:, 1:-1, 1:-1].mean() - 0.7) < 0.02
    neighbours = floor[:, :-2, 1:-1] * 1 + floor[:, 2:, 1:-1] + floor[:, 1:-1, :-2] + floor[:, 1:-1, 2:]
    inner = drawn.questions[:, 1:-1, 1:-1]
    ends = [(neighbours[inner == cell] == 1).mean() for cell in (Cell.START, Cell.GOAL)]
    assert abs(ends[0] - ends[1]) < 0.15


def test_excluded_walls_are_not_generated() -> None:
    """Up to rotation and reflection, also with even sizes."""
    seen = maze.generate_walls(300, 5, seed=0)
    fresh = maze.generate_walls(50, 5, seed=1, exclude=seen[::2])
    keys = maze.fingerprints(fresh.questions)
    assert not np.isin(keys, maze.fingerprints(seen[::2].questions)).any()
    assert np.isin(keys, maze.fingerprints(seen[1::2].questions)).any()
    assert len(np.unique(keys)) == 50
    turned = PuzzleSet(kind="maze", questions=np.rot90(seen.questions, axes=(1, 2)), answers=seen.answers)
    again = maze.generate_walls(20, 5, seed=0, exclude=turned)
    assert not np.isin(maze.fingerprints(again.questions), maze.fingerprints(seen.questions)).any()


@pytest.mark.parametrize(
    ("generate", "arguments", "says"),
    [
        (maze.generate_walls, {"size": 4}, "size=4"),
        (maze.generate_walls, {"floor": 0.0}, "floor=0.0"),
        (maze.generate_walls, {"min_path": 0}, "min_path=0"),
        (maze.generate_walls, {"min_path": 9, "max_path": 8}, "max_path=8"),
        (maze.generate_walls, {"min_path": 80}, "Only 0 of 1 .* wider bounds"),
        (maze.generate, {"min_path": 80}, "Only 0 of 1 .* wider bounds"),
        (maze.generate_walls, {"num": -1}, "num=-1"),
    ],
)
def test_invalid_bounds_are_refused(generate: Callable[..., PuzzleSet], arguments: dict[str, Any], says: str) -> None:
    """With a ConfigError."""
    with pytest.raises(ConfigError, match=says):
        generate(**{"num": 1, "size": 9, "seed": 0} | arguments)


def test_scores_of_batches_agree_with_single_verdicts() -> None:
    """For correct answers, other shortest paths, detours, extra marks, missing marks and changed walls."""
    drawn = maze.generate_walls(200, 8, seed=4, floor=0.8, min_path=3)
    rng = np.random.default_rng(0)
    predictions = drawn.answers.copy()
    turned = np.ascontiguousarray(np.rot90(drawn.questions, 2, axes=(1, 2)))
    others = np.rot90(maze.shortest_paths(turned), 2, axes=(1, 2))  # ties are broken the other way
    predictions[50:120] = others[50:120]
    for grid in predictions[100:]:
        places = np.argwhere(grid != rng.integers(2))
        grid[tuple(places[rng.integers(len(places))])] = rng.integers(5)
    exact = (drawn.answers == predictions).all(axis=(1, 2))
    right = maze.valid_and_shortest(drawn.questions, predictions)
    singles = [maze.verdict(q, p).is_correct for q, p in zip(drawn.questions, predictions, strict=True)]
    assert right.tolist() == singles
    assert exact[:50].all()
    assert right[:100].all()
    assert not exact[50:100].all()
    assert not right[100:].all()
    assert (exact <= right).all()


def test_only_shortest_paths_count() -> None:
    """A longer path and an empty answer do not count. If S and G are neighbours, no mark is needed."""
    question = np.array([[ALPHABET.index(c) for c in row] for row in ("#####", "#S G#", "#   #", "#####")], np.uint8)
    detour, direct = question.copy(), question.copy()
    detour[2, 1:4] = Cell.PATH
    direct[1, 2] = Cell.PATH
    batch = np.stack([question, detour, direct])
    assert maze.valid_and_shortest(np.stack([question] * 3), batch).tolist() == [False, False, True]
    beside = question.copy()
    beside[1, 2:4] = Cell.GOAL, Cell.FLOOR
    assert maze.valid_and_shortest(beside[None], beside[None]).tolist() == [True]
    with pytest.raises(DataError, match="shapes"):
        maze.valid_and_shortest(batch, batch[:2])


def test_the_walls_of_a_seed_never_change() -> None:
    """Seed 0 gives this maze. A change would make recorded runs impossible to repeat."""
    assert maze.render(maze.generate_walls(1, 8, seed=0, min_path=10).answers[0]) == GOLDEN


GOLDEN = """\
########
# ##Soo#
#   # o#
# ## #o#
# Go#oo#
#  ooo##
# #   ##
########"""
