"""Mazes: what ``attractor.data.maze`` promises, checked against scipy's graphs where it can be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, shortest_path

from attractor.data import MAZE, PuzzleSet, maze
from attractor.data.maze import ALPHABET, Cell, Grid
from attractor.data.maze.generate import _perfect_mazes
from attractor.data.maze.paths import PathVerdict
from attractor.errors import ConfigError, DataError

QUICK = settings(max_examples=100, deadline=None)
SEEDS = st.integers(0, 2**32)


def graph(grid: Grid) -> coo_array:
    """The floor of a grid (H, W) as a symmetric graph over its H·W cells, walls being isolated nodes."""
    floor = grid != Cell.WALL
    index = np.arange(grid.size).reshape(grid.shape)
    across, down = floor[:, :-1] & floor[:, 1:], floor[:-1] & floor[1:]
    one = np.concatenate([index[:, :-1][across], index[:-1][down]])
    other = np.concatenate([index[:, 1:][across], index[1:][down]])
    ends = np.concatenate([one, other]), np.concatenate([other, one])
    return coo_array((np.ones(2 * len(one)), ends), shape=(grid.size, grid.size))


def distance(grid: Grid) -> float:
    """Steps from S to G by scipy, infinite where there is no path."""
    start, goal = (int(np.flatnonzero(grid == cell)[0]) for cell in (Cell.START, Cell.GOAL))
    return float(shortest_path(graph(grid).tocsr(), unweighted=True, indices=start)[goal])


def copies(grid: NDArray[Any]) -> list[NDArray[Any]]:
    """The 8 symmetric copies of a square grid."""
    return [np.rot90(side, turns) for side in (grid, grid[:, ::-1]) for turns in range(4)]


def least_copy(grid: Grid) -> bytes:
    return min(copy.tobytes() for copy in copies(grid))


def grid_of(*lines: str) -> Grid:
    """A grid without any check, so that tests can build wrong ones."""
    return np.array([[ALPHABET.index(character) for character in line] for line in lines], np.uint8)


@st.composite
def any_grids(draw: st.DrawFn, closed: bool = False, square: bool = False) -> Grid:
    """Grids with one S and one G among random walls: loops, open areas and separate parts included."""
    height = draw(st.integers(4, 9))
    width = height if square else draw(st.integers(4, 9))
    floor = draw(arrays(np.bool_, (height, width), elements=st.sampled_from([True, True, False])))
    grid = floor.astype(np.uint8)
    if closed:
        grid = np.pad(grid[1:-1, 1:-1], 1)
    inside = np.arange(height * width).reshape(height, width)[1:-1, 1:-1].reshape(-1).tolist()
    start, goal = draw(st.lists(st.sampled_from(inside), min_size=2, max_size=2, unique=True))
    grid.flat[start], grid.flat[goal] = Cell.START, Cell.GOAL
    return grid


# Generating


@pytest.mark.parametrize("dfs", [False, True])
@pytest.mark.parametrize("size", [5, 7, 11, 31])
def test_a_maze_is_a_spanning_tree_over_its_junctions(size: int, dfs: bool) -> None:
    """All junctions are open and connected by one passage fewer than there are junctions. All other cells are walls."""
    questions = maze.generate(6, size, seed=1, dfs=dfs).questions
    num_junctions = ((size - 1) // 2) ** 2
    assert questions.shape == (6, size, size)
    assert questions.dtype == np.uint8
    for grid in questions:
        floor = grid != Cell.WALL
        assert floor[1::2, 1::2].all()
        assert not floor[0::2, 0::2].any()
        assert floor.sum() == 2 * num_junctions - 1
        parts, label = connected_components(graph(grid), directed=False)
        assert len(set(label[floor.reshape(-1)])) == 1
        assert parts == 1 + (~floor).sum()


def test_start_and_goal_are_two_uniformly_random_junctions() -> None:
    """There is one S and one G, and every ordered pair of junctions is about equally frequent."""
    # From _draw, because leaving out symmetric copies changes the frequencies of so small mazes.
    questions = _perfect_mazes(12_000, 5, np.random.default_rng(0), corners=False, dfs=False)
    junctions = questions[:, 1::2, 1::2].reshape(-1, 4)
    assert ((junctions == Cell.START).sum(1) == 1).all()
    assert ((junctions == Cell.GOAL).sum(1) == 1).all()
    pairs = np.zeros((4, 4), int)
    np.add.at(pairs, ((junctions == Cell.START).argmax(1), (junctions == Cell.GOAL).argmax(1)), 1)
    assert (np.diag(pairs) == 0).all()
    assert abs(pairs[~np.eye(4, dtype=bool)] - 1000).max() < 150  # five standard deviations


def test_corners_are_where_they_should_be() -> None:
    """With corners, S is at the first junction and G at the last one of every maze."""
    questions = maze.generate(5, 9, seed=0, corners=True).questions
    assert (questions[:, 1, 1] == Cell.START).all()
    assert (questions[:, -2, -2] == Cell.GOAL).all()


def test_mazes_of_maze_unique_follow_its_definition() -> None:
    """A tree by depth-first search on 29 × 29 in 30 × 30; S and G on any open cell, every distance equally often."""
    found = maze.generate_unique(1025, seed=0)
    walls = found.questions == Cell.WALL
    assert walls.shape == (1025, 30, 30)
    assert walls[:, 28:].all()
    assert walls[:, :, 28:].all()
    assert not walls[:, 1:28:2, 1:28:2].any()
    assert ((~walls).sum(axis=(1, 2)) == 2 * 14**2 - 1).all()  # a tree has one edge less than junctions
    num_steps = (found.answers == Cell.PATH).sum(axis=(1, 2)) + 1
    counts = np.bincount(num_steps, minlength=141)[100:]  # 25 of each on average
    assert counts.shape == (41,)
    assert ((counts - 25) ** 2 / 25).sum() < 75  # 99.9 % of chi-square with 40 degrees of freedom is below 73.4
    for cell in (Cell.START, Cell.GOAL):  # corridors too: half of the open cells are edges
        at_junction = (found.questions == cell)[:, 1::2, 1::2].any(axis=(1, 2)).mean()
        assert 0.4 < at_junction < 0.6
    # Depth-first search leaves few dead ends: a tenth of the junctions, and three in ten of uniform trees.
    degree = sum(~np.roll(walls, step, axis)[:, 1:28:2, 1:28:2] for step in (-1, 1) for axis in (1, 2))
    assert (degree == 1).mean() < 0.15
    again = maze.generate_unique(3, seed=0)
    assert (again.questions == found.questions[:3]).all()
    assert len(maze.generate_unique(2, 11, seed=0, min_path=5, max_path=20)) == 2
    with pytest.raises(ConfigError, match="no path of 100 steps fits"):
        maze.generate_unique(1, 11, seed=0)


def test_spanning_trees_are_equally_likely_without_dfs() -> None:
    """The 192 trees over 3 × 3 junctions are about equally frequent. Depth-first search prefers some of them."""
    num = 192 * 100

    def spread(dfs: bool) -> tuple[int, float]:
        floor = _perfect_mazes(num, 7, np.random.default_rng(0), corners=False, dfs=dfs) != Cell.WALL
        counts = np.unique(floor.reshape(num, -1), axis=0, return_counts=True)[1]
        return len(counts), float(((counts - 100) ** 2 / 100).sum())

    trees, chi_square = spread(dfs=False)
    assert trees == 192
    assert chi_square < 191 + 5 * (2 * 191) ** 0.5
    assert spread(dfs=True)[1] > 10 * chi_square


@given(seed=SEEDS, size=st.sampled_from([7, 9, 13]), few=st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_a_seed_gives_the_same_mazes(seed: int, size: int, few: int) -> None:
    """The same settings give the same mazes, a smaller number gives the first of them, another seed gives others."""
    all_of_them = maze.generate(5, size, seed=seed)
    again = maze.generate(few, size, seed=seed)
    np.testing.assert_array_equal(again.questions, all_of_them[:few].questions)
    np.testing.assert_array_equal(again.answers, all_of_them[:few].answers)
    other = maze.generate(5, size, seed=seed + 1)
    assert (other.questions != all_of_them.questions).any()


GOLDEN = """\
###########
# #ooo#   #
# #o#o### #
#  o#ooo  #
###o###o###
#  o  #G  #
# #o# # # #
# #o# # # #
# #o##### #
# #S    # #
###########"""


def test_the_mazes_of_a_seed_never_change() -> None:
    """Seed 0 gives this maze. A change would make recorded runs impossible to repeat."""
    assert maze.render(maze.generate(1, 11, seed=0).answers[0]) == GOLDEN


def test_no_two_mazes_are_symmetric_copies() -> None:
    """No copies are returned where they are likely. Size 5 has exactly 6 different mazes, and all are found."""
    for size, num in ((5, 6), (7, 700)):
        drawn = maze.generate(num, size, seed=0)
        assert len({least_copy(grid) for grid in drawn.questions}) == num


@pytest.mark.parametrize("size", [5, 7])
def test_excluded_mazes_are_not_generated(size: int) -> None:
    """No maze is a symmetric copy of an excluded one, even if only few others are left."""
    num = {5: 4, 7: 600}[size]
    seen = maze.generate(num, size, seed=0)
    fresh = maze.generate(num // 4 + 1, size, seed=0, exclude=seen)
    old = {least_copy(grid) for grid in seen.questions}
    assert not old & {least_copy(grid) for grid in fresh.questions}


def test_too_many_mazes_are_refused_with_advice() -> None:
    """The ConfigError says how many mazes there are, with and without exclusion."""
    with pytest.raises(ConfigError, match=r"Only 6 of 7 different mazes of size 5 .* ask for fewer"):
        maze.generate(7, 5, seed=0)
    everything = maze.generate(6, 5, seed=0)
    with pytest.raises(ConfigError, match="Only 0 of 1 "):
        maze.generate(1, 5, seed=3, exclude=everything)


@pytest.mark.parametrize(
    ("num", "size", "seed", "says"),
    [
        (1, 4, 0, "size=4"),
        (1, 3, 0, "size=3"),
        (1, 12, 0, "odd"),
        (-1, 5, 0, "num=-1"),
        (1, 5, -1, "seed=-1"),
    ],
)
def test_invalid_settings_are_refused(num: int, size: int, seed: int, says: str) -> None:
    """Sizes that are even or too small and negative numbers raise a ConfigError."""
    with pytest.raises(ConfigError, match=says):
        maze.generate(num, size, seed=seed)


def test_mazes_are_indexed_by_slices_and_arrays() -> None:
    """Slices, masks and permutations apply to questions and answers alike. Other shapes are refused."""
    drawn = maze.generate(4, 7, seed=0)
    assert len(drawn) == 4
    assert len(drawn[1:3]) == 2
    order = np.array([3, 0])
    np.testing.assert_array_equal(drawn[order].answers, drawn.answers[order])
    assert len(drawn[np.array([True, False, False, True])]) == 2
    with pytest.raises(DataError, match="shapes"):
        PuzzleSet(kind="maze", questions=drawn.questions, answers=drawn.answers[:2])


# Solving


@given(grid=any_grids())
@QUICK
def test_the_marked_path_is_shortest_or_its_absence_is_reported(grid: Grid) -> None:
    """On any grid, the marked path is as long as SciPy says. Only a maze without a path raises a DataError."""
    steps = distance(grid)
    if np.isinf(steps):
        with pytest.raises(DataError, match=r"Maze 1 .* no path"):
            maze.shortest_paths(np.stack([np.maximum(grid, Cell.FLOOR), grid]))  # the first without walls
        return
    (answer,) = maze.shortest_paths(grid[None])
    assert (answer == Cell.PATH).sum() == steps - 1
    np.testing.assert_array_equal(np.where(answer == Cell.PATH, Cell.FLOOR, answer), grid)
    verdict = maze.verdict(grid, answer)
    assert (verdict.is_path, verdict.is_correct, verdict.length) == (True, True, steps)


@pytest.mark.parametrize("size", [5, 11, 31])
def test_answers_mark_the_unique_path(size: int) -> None:
    """The answer has the length that SciPy finds, and changes only floor cells."""
    drawn = maze.generate(5, size, seed=2)
    for question, answer in zip(drawn.questions, drawn.answers, strict=True):
        assert (answer == Cell.PATH).sum() + 1 == distance(question)
        np.testing.assert_array_equal(np.where(answer == Cell.PATH, Cell.FLOOR, answer), question)


def test_an_answer_does_not_depend_on_the_batch_or_on_marks() -> None:
    """Other mazes in the batch and existing marks do not change an answer."""
    drawn = maze.generate(8, 9, seed=3)
    one_by_one = [maze.shortest_paths(grid[None])[0] for grid in drawn.questions]
    np.testing.assert_array_equal(np.stack(one_by_one), drawn.answers)
    np.testing.assert_array_equal(maze.shortest_paths(drawn.answers), drawn.answers)


def test_of_several_shortest_paths_the_first_direction_wins() -> None:
    """Ties are broken in the order up, left, right, down, at every step from S."""
    (answer,) = maze.shortest_paths(grid_of("#####", "#S  #", "#   #", "#  G#", "#####")[None])
    assert maze.render(answer).split("\n") == ["#####", "#Soo#", "#  o#", "#  G#", "#####"]


@pytest.mark.parametrize("cell", [Cell.START, Cell.GOAL])
@pytest.mark.parametrize("count", [0, 2])
def test_a_maze_without_one_start_and_one_goal_is_named(cell: Cell, count: int) -> None:
    """A maze with no or two S or G raises a DataError with its index in the batch."""
    good = grid_of("#####", "#S G#", "#   #", "#####")
    bad = good.copy()
    bad[bad == cell] = Cell.FLOOR
    bad[2, 1 : 1 + count] = cell
    with pytest.raises(DataError, match=rf"Maze 2 .* {count} cells {ALPHABET[cell]}"):
        maze.shortest_paths(np.stack([good, good, bad]))


# Symmetry


@given(seed=SEEDS)
@QUICK
def test_augmenting_commutes_with_solving(seed: int) -> None:
    """The answer to the transformed question is the transformed answer."""
    drawn = maze.generate(4, 7, seed=seed % 7)
    questions, answers = maze.augment(drawn.questions, drawn.answers, np.random.default_rng(seed))
    assert questions.dtype == answers.dtype == np.uint8
    np.testing.assert_array_equal(maze.shortest_paths(questions), answers)
    for before, after in zip(drawn.questions, questions, strict=True):
        assert least_copy(before) == least_copy(after)


def test_augmenting_uses_all_eight_symmetries() -> None:
    """They are about equally frequent, the same for the same seed, and the input does not change."""
    one = maze.generate(1, 11, seed=0)
    many = one[np.zeros(4000, int)]
    kept = many.questions.copy()
    questions, _ = maze.augment(many.questions, many.answers, np.random.default_rng(0))
    again, _ = maze.augment(many.questions, many.answers, np.random.default_rng(0))
    np.testing.assert_array_equal(questions, again)
    np.testing.assert_array_equal(many.questions, kept)
    counts = [int((questions == copy).all(axis=(1, 2)).sum()) for copy in copies(one.questions[0])]
    assert sum(counts) == 4000
    assert min(counts) > 400


@given(grid=any_grids(square=True), other=any_grids(square=True))
@QUICK
def test_fingerprints_are_equal_exactly_for_copies(grid: Grid, other: Grid) -> None:
    """All 8 copies of a maze have the same key. Other mazes have other keys."""
    keys = maze.fingerprints(np.stack(copies(grid)))
    assert keys.shape == (8,)
    assert len(set(keys.tolist())) == 1
    alike = least_copy(grid) == least_copy(other)
    assert (maze.fingerprints(other[None])[0] == keys[0]) == (alike and grid.shape == other.shape)


def test_only_square_mazes_are_transformed() -> None:
    """Other shapes raise a DataError."""
    oblong = np.ones((2, 5, 7), np.uint8)
    with pytest.raises(DataError, match="5 x 7"):
        maze.augment(oblong, oblong, np.random.default_rng(0))
    with pytest.raises(DataError, match="5 x 7"):
        maze.fingerprints(oblong)


# Text

GOOD = ["#####", "#S G#", "#####"]


@given(grid=any_grids(closed=True))
@QUICK
def test_parsing_undoes_rendering(grid: Grid) -> None:
    """A grid can be written as text and read again, with newlines of either kind and blank lines around it."""
    text = maze.render(grid)
    for variant in (text, text + "\n", "\n\n" + text + "\n\n", text.replace("\n", "\r\n") + "\r\n"):
        parsed = maze.parse(variant)
        np.testing.assert_array_equal(parsed, grid)
        assert parsed.dtype == np.uint8


MALFORMED = {
    "unknown character": (["#####", "#S?G#", "#####"], 2, 3, "unexpected character '?'; write '#'"),
    "tab": (["#####", "#S\tG#", "#####"], 2, 3, r"unexpected character '\t'"),
    "path in a question": (["#####", "#SoG#", "#####"], 2, 3, "unexpected character 'o'"),
    "short line": (["#####", "#SG#", "#####"], 2, 5, "this line has 4 characters and the first 5"),
    "long line": (["#####", "#S G#", "######"], 3, 6, "this line has 6 characters and the first 5"),
    "no start": (["#####", "#  G#", "#####"], 1, 1, "this maze has no 'S'"),
    "no goal": (["#####", "#S  #", "#####"], 1, 1, "this maze has no 'G'"),
    "second start": (["#####", "#SGS#", "#####"], 2, 4, "this is a second 'S'"),
    "second goal": (["#####", "#SG #", "#G  #", "#####"], 3, 2, "this is a second 'G'"),
    "too low": (["#####", "#####"], 1, 1, "a maze of 2 x 5 cells has no inside; draw at least 3 x 3"),
    "too narrow": (["##"] * 5, 1, 1, "a maze of 5 x 2 cells"),
    "empty": ([], 1, 1, "there is no maze; draw one"),
    "blank": (["   ", ""], 1, 1, "there is no maze; draw one"),
    "two mazes": ([*GOOD, "", *GOOD], 5, 1, "a second maze begins; give one"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_text_is_reported_with_line_and_column(name: str) -> None:
    """Every error names source, line and column, both from 1, and says what to do."""
    lines, line, column, says = MALFORMED[name]
    with pytest.raises(DataError) as caught:
        maze.parse("\n".join(lines), source="hedge.txt")
    message = str(caught.value)
    assert message.startswith(f"hedge.txt, line {line}, column {column}: ")
    assert says in message
    assert message.endswith(".")
    assert "\n" not in message


def test_another_wall_is_named() -> None:
    """The character that the border is drawn with."""
    with pytest.raises(DataError, match="if '█' is a wall, replace it by '#'"):
        maze.parse("█████\n█S G█\n█████")


@pytest.mark.parametrize("name", [name for name in MALFORMED if name not in ("empty", "blank", "two mazes")])
def test_lines_are_counted_from_the_start_of_the_file(tmp_path: Path, name: str) -> None:
    """Also after another maze and two blank lines."""
    lines, line, column, says = MALFORMED[name]
    path = tmp_path / "two.txt"
    path.write_text("\n".join([*GOOD, "", "", *lines]) + "\n")
    with pytest.raises(DataError) as caught:
        MAZE.read(path)
    assert str(caught.value).startswith(f"{path}, line {line + 5}, column {column}: ")
    assert says in str(caught.value)


@given(data=st.text(alphabet="# SGo\n\r\tx\x0b\u2028", max_size=40))
@QUICK
def test_no_text_breaks_the_parser(data: str) -> None:
    """Every text gives a grid that renders to it again, or a DataError."""
    try:
        grid = maze.parse(data, answers=True)
    except DataError:
        return
    assert maze.render(grid) in data.replace("\r\n", "\n")


@given(grids=st.lists(any_grids(closed=True), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_reading_undoes_writing(tmp_path_factory: pytest.TempPathFactory, grids: list[Grid]) -> None:
    """Mazes of different sizes are read in order and unchanged, and no temporary file is left."""
    path = tmp_path_factory.mktemp("mazes") / "hedges.txt"
    path.write_text("old")
    maze.write(path, grids)
    back = [placed.grid for placed in MAZE.read(path)]
    assert len(back) == len(grids)
    for before, after in zip(grids, back, strict=True):
        np.testing.assert_array_equal(before, after)
    assert list(path.parent.iterdir()) == [path]


def test_answers_are_read_only_with_answers_true(tmp_path: Path) -> None:
    """Otherwise the first mark is refused, because a question must not contain its answer."""
    path = tmp_path / "answers.txt"
    answers = maze.generate(3, 7, seed=0).answers
    maze.write(path, answers)
    np.testing.assert_array_equal(
        np.stack([placed.grid for placed in maze.parse_all(path.read_text(), answers=True)]), answers
    )
    with pytest.raises(DataError, match=r"unexpected character 'o'.*only in an answer"):
        MAZE.read(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the write fails at the last moment, the old file stays and no temporary file is left."""
    path = tmp_path / "hedges.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("attractor.files.os.replace", fail)
    with pytest.raises(ConfigError, match="disk full"):
        maze.write(path, [grid_of(*GOOD)])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_files_are_data_errors(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are not UTF-8 raise a DataError. A byte order mark is accepted."""
    with pytest.raises(DataError, match=r"none\.txt cannot be read"):
        MAZE.read(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot be read"):
        MAZE.read(tmp_path)
    path = tmp_path / "bytes.txt"
    path.write_bytes(b"#####\n\xff\xfe")
    with pytest.raises(DataError, match=r"bytes\.txt is not UTF-8 text \(byte 6\)"):
        MAZE.read(path)
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(GOOD).encode())
    np.testing.assert_array_equal(MAZE.read(path)[0].grid, grid_of(*GOOD))


# Verdicts

OPEN_MAZE = grid_of("#######", "#S    #", "#     #", "#    G#", "#######")


def verdict_on(*rows: str) -> PathVerdict:
    """The verdict on an answer to ``OPEN_MAZE``, given its rows between the upper and the lower border."""
    return maze.verdict(OPEN_MAZE, grid_of("#######", *rows, "#######"))


def test_every_shortest_path_is_correct() -> None:
    """Both of two shortest paths are accepted, with their length."""
    for answer in (
        verdict_on("#Soooo#", "#    o#", "#    G#"),
        verdict_on("#S    #", "#o    #", "#ooooG#"),
    ):
        assert (answer.is_path, answer.is_correct, answer.length) == (True, True, 6)
        assert str(answer) == "verified: a path of 6 steps, the shortest"


def test_a_longer_path_is_not_correct() -> None:
    """The verdict gives its length and the shortest one."""
    answer = maze.verdict(
        grid_of("#####", "#S G#", "#   #", "#   #", "#####"),
        grid_of("#####", "#S G#", "#o o#", "#ooo#", "#####"),
    )
    assert (answer.is_path, answer.is_correct, answer.length) == (True, False, 6)
    assert str(answer) == "wrong: the answer is a path of 6 steps, but the shortest has 2"


def test_a_goal_next_to_the_start_needs_no_marks() -> None:
    """It is a path of one step, in the singular."""
    grid = grid_of("####", "#SG#", "####")
    assert str(maze.verdict(grid, grid)) == "verified: a path of 1 step, the shortest"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (("#So   #", "#o    #", "#ooooG#"), "branches or touches itself at line 2, column 2"),
        (("#S    #", "#oo   #", "#ooooG#"), "branches or touches itself at line 3, column 2"),
        (("#S    #", "#o    #", "#oo oG#"), "does not reach the goal but ends at line 4, column 3"),
        (("#S    #", "#     #", "#    G#"), "does not reach the goal but ends at line 2, column 2"),
        (("#S  o #", "#o    #", "#ooooG#"), "marks a cell off its path at line 2, column 5"),
        (("#S    #", "#o   o#", "#ooooG#"), "marks a cell off its path at line 3, column 6"),
        (("#S    #", "o     #", "#    G#"), "walks through a wall at line 3, column 1"),
        (("#S    #", "#o #  #", "#ooooG#"), "changes the maze at line 3, column 4"),
        (("#S    #", "#o    #", "#ooooo#"), "changes the maze at line 4, column 6"),
        (("#Soooo#", "#S   o#", "#    G#"), "changes the maze at line 3, column 2"),
        (("#S G  #",), "has the shape (3, 7) and the maze (5, 7)"),
    ],
)
def test_a_verdict_names_the_first_mistake(rows: tuple[str, ...], says: str) -> None:
    """It gives the place, and no length."""
    answer = verdict_on(*rows)
    assert (answer.is_path, answer.is_correct, answer.length) == (False, False, None)
    assert str(answer) == f"wrong: the answer {says}"


@given(grid=any_grids(closed=True), data=st.data())
@QUICK
def test_the_verdict_agrees_with_a_definition(grid: Grid, data: st.DataObject) -> None:
    """An answer is a path if only floor is marked, and S, marks and G are connected with degrees 1, 2, …, 2, 1."""
    answer = grid.copy()
    if np.isfinite(distance(grid)) and data.draw(st.booleans()):
        (answer,) = maze.shortest_paths(grid[None])
    for _ in range(data.draw(st.integers(0, 2))):
        answer.flat[data.draw(st.integers(0, grid.size - 1))] = data.draw(st.integers(0, 4))

    line = np.where((answer == Cell.PATH) | (grid >= Cell.START), 1, 0).astype(np.uint8)
    edges = graph(line)
    degree = np.asarray(edges.sum(axis=1)).reshape(grid.shape)
    unchanged = np.where((answer == Cell.PATH) & (grid == Cell.FLOOR), grid, answer)
    is_path = (
        (unchanged == grid).all()
        and connected_components(edges, directed=False)[0] == 1 + (line == 0).sum()
        and (degree[grid >= Cell.START] == 1).all()
        and (degree[answer == Cell.PATH] == 2).all()
    )
    verdict = maze.verdict(grid, answer)
    assert verdict.is_path == is_path
    if is_path:
        assert verdict.length == line.sum() - 1
        assert verdict.is_correct == (verdict.length == distance(grid))


def test_a_question_without_a_goal_has_no_verdict() -> None:
    """It raises a DataError."""
    grid = grid_of("#####", "#S  #", "#####")
    with pytest.raises(DataError, match="0 cells G"):
        maze.verdict(grid, grid)


def test_settings_of_perfect_mazes_are_refused_for_random_walls() -> None:
    """They would have no effect."""
    with pytest.raises(ConfigError, match="for style='perfect'"):
        MAZE.generate(1, seed=0, size=9, style="walls", corner_fraction=0.5)
