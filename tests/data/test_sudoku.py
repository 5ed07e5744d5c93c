"""Sudoku: what ``attractor.data.sudoku`` promises, checked against brute force and another solver."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attractor.data import SUDOKU, PuzzleSet, sudoku
from attractor.data.sudoku import BOXES, Grid
from attractor.data.sudoku.generate import _solved_grids
from attractor.data.sudoku.symmetry import Seen, invariants
from attractor.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "sudoku"
QUICK = settings(max_examples=20, deadline=None)
SEEDS = st.integers(0, 2**32)
SIZES = [4, 6, 9]


@pytest.fixture(scope="module")
def drawn() -> dict[int, PuzzleSet]:
    """Minimal puzzles of every size."""
    return {size: sudoku.generate(num, size=size, seed=5) for size, num in ((4, 20), (6, 60), (9, 40))}


def line_orders(size: int, group: int) -> list[list[int]]:
    """Every order of lines that stay together in groups, by brute force."""
    blocks = [range(i, i + group) for i in range(0, size, group)]
    return [
        [line for block in choice for line in block]
        for order in itertools.permutations(blocks)
        for choice in itertools.product(*(itertools.permutations(block) for block in order))
    ]


def renamed(grid: Grid) -> bytes:
    """Digits renamed in the order in which they appear, so that names do not matter."""
    names: dict[int, int] = {0: 0}
    return bytes(names.setdefault(digit, len(names)) for digit in grid.reshape(-1).tolist())


def orbit(grid: Grid) -> set[bytes]:
    """All symmetric copies of a grid, up to names, by brute force."""
    size = len(grid)
    height, width = BOXES[size]
    rows, columns = np.array(line_orders(size, height)), np.array(line_orders(size, width))
    sides = [grid, grid.T] if height == width else [grid]
    return {renamed(side[r][:, c]) for side in sides for r in rows for c in columns}


def all_solved(size: int) -> list[Grid]:
    """Every solved grid of a small size, by trying out all rows."""
    rows = list(itertools.permutations(range(1, size + 1)))
    height, width = BOXES[size]
    found: list[Grid] = []

    def extend(grid: list[tuple[int, ...]]) -> None:
        if len(grid) == size:
            found.append(np.array(grid, np.uint8))
            return
        band = grid[len(grid) // height * height :]
        for row in rows:
            columns = all(row[c] != other[c] for other in grid for c in range(size))
            boxes = all({*row[i : i + width]}.isdisjoint(o[i : i + width]) for o in band for i in range(0, size, width))
            if columns and boxes:
                extend([*grid, row])

    extend([])
    return found


# Solving


def test_solutions_are_counted_exactly() -> None:
    """There are 288 grids of 4 x 4. The number of solutions of any question agrees with their list."""
    solved = np.stack(all_solved(4))
    assert len(solved) == 288
    assert sudoku.count_solutions(np.zeros((4, 4), np.uint8), 1000) == 288
    rng = np.random.default_rng(0)
    for _ in range(60):
        question = np.where(rng.random((4, 4)) < 0.35, solved[rng.integers(288)], np.uint8(0))
        if rng.random() < 0.3:
            question[tuple(rng.integers(4, size=2))] = rng.integers(1, 5)
        agree = ((question == 0) | (solved == question)).all(axis=(1, 2)).sum()
        assert sudoku.count_solutions(question, 1000) == agree
        assert sudoku.count_solutions(question) == min(agree, 2)


@pytest.mark.parametrize("size", SIZES)
def test_another_solver_agrees(size: int, drawn: dict[int, PuzzleSet]) -> None:
    """py-sudoku finds the same unique solution. Without one clue it finds several."""
    other = pytest.importorskip("sudoku", reason="py-sudoku is not installed: pip install 'attractor-models[test]'")
    height, width = BOXES[size]
    puzzles = drawn[size][:5]
    for question, answer in zip(puzzles.questions, puzzles.answers, strict=True):
        theirs = other.Sudoku(width, height, board=question.tolist())
        assert theirs.solve().board == answer.tolist()
        assert not theirs.has_multiple_solutions()
        fewer = question.copy()
        fewer[tuple(np.argwhere(fewer)[0])] = 0
        assert other.Sudoku(width, height, board=fewer.tolist()).has_multiple_solutions()


@pytest.mark.parametrize("size", SIZES)
def test_questions_without_a_unique_solution_are_refused(size: int, drawn: dict[int, PuzzleSet]) -> None:
    """Repeated digits are named, and no solution and several solutions are distinguished."""
    question, answer = drawn[size].questions[0], drawn[size].answers[0]
    sudoku.check(question)
    np.testing.assert_array_equal(sudoku.solve(question), answer)
    blank = np.zeros_like(question)
    for cells, says in (
        ([(1, 0), (1, -1)], "digit 1 twice in row 2"),
        ([(0, 2), (-1, 2)], "digit 1 twice in column 3"),
        ([(0, 0), (1, 1)], "digit 1 twice in box 1"),
    ):
        wrong = blank.copy()
        for cell in cells:
            wrong[cell] = 1
        with pytest.raises(DataError, match=says):
            sudoku.check(wrong)
    with pytest.raises(DataError, match="several solutions; add clues"):
        sudoku.solve(blank)
    none = blank.copy()
    none[0, 1:] = range(2, size + 1)
    none[1, 0] = 1  # the corner has no digit left
    with pytest.raises(DataError, match="no solution"):
        sudoku.solve(none)


DEEP = (  # the digits 1, 5 and 6 share two cells of column 5; a question that many guesses do not decide
    ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4.........",
    "000000010400060020000000000000050407000000360001090000300400200000100000000806000",
)


@pytest.mark.parametrize(("text", "says"), [(DEEP[0], "no solution"), (DEEP[1], "not decided by")])
def test_refusing_takes_few_guesses(text: str, says: str) -> None:
    """The solver guesses where the fewest choices are left. It gives no verdict that it has not proved."""
    with pytest.raises(DataError, match=says):
        sudoku.check(sudoku.parse(text))


@pytest.mark.parametrize("num_clues", [0, 1, 5, 16])
def test_nearly_empty_grids_have_several_solutions(num_clues: int) -> None:
    """The solver stops at the second solution."""
    rng = np.random.default_rng(0)
    whole = sudoku.generate(1, size=9, seed=0).answers[0]
    kept = rng.permutation(81).reshape(9, 9) < num_clues
    with pytest.raises(DataError, match="several solutions"):
        sudoku.check(np.where(kept, whole, 0).astype(np.uint8))


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (81,)])
def test_grids_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    """The error names the shape."""
    with pytest.raises(DataError, match="shape"):
        sudoku.solve(np.zeros(shape, np.uint8))


# Generating


@pytest.mark.parametrize("size", SIZES)
def test_generated_puzzles_are_minimal(size: int, drawn: dict[int, PuzzleSet]) -> None:
    """Each has one solution, and several without any one of its clues."""
    puzzles = drawn[size]
    assert sudoku.solves(puzzles.questions, puzzles.answers).all()
    for question in puzzles.questions[:4]:
        assert sudoku.count_solutions(question) == 1
        for cell in np.argwhere(question):
            fewer = question.copy()
            fewer[tuple(cell)] = 0
            assert sudoku.count_solutions(fewer) == 2


@pytest.mark.parametrize(("size", "clues"), [(4, 7), (6, 10), (9, 40)])
def test_the_number_of_clues_is_kept(size: int, clues: int) -> None:
    """Exactly as many as asked for, with one solution."""
    puzzles = sudoku.generate(10, size=size, seed=1, clues=clues)
    assert ((puzzles.questions > 0).sum(axis=(1, 2)) == clues).all()
    assert [sudoku.count_solutions(question) for question in puzzles.questions] == [1] * 10


def test_a_seed_gives_the_same_puzzles(drawn: dict[int, PuzzleSet]) -> None:
    """A smaller number gives the first of them, another seed gives others, and the puzzles of seed 0 never change."""
    again = sudoku.generate(7, size=6, seed=5)
    np.testing.assert_array_equal(again.questions, drawn[6].questions[:7])
    assert (sudoku.generate(7, size=6, seed=6).questions != again.questions).any()
    assert sudoku.render(sudoku.generate(1, size=6, seed=0).questions[0]) == GOLDEN


GOLDEN = """\
. . . | 1 . .
. . 5 | . 2 .
------+------
. . . | 3 . .
. . 1 | 5 . .
------+------
. 4 2 | . 1 .
5 . . | . . ."""


def test_all_minimal_puzzles_of_size_4_are_found() -> None:
    """There are 36 up to symmetry: 13 with 4 clues, 22 with 5 and one with 6."""
    puzzles = sudoku.generate(36, size=4, seed=0)
    assert np.bincount((puzzles.questions > 0).sum(axis=(1, 2))).tolist() == [0, 0, 0, 0, 13, 22, 1]
    with pytest.raises(ConfigError, match=r"Only 0 of 1 different minimal puzzles of size 4 .* ask for fewer"):
        sudoku.generate(1, size=4, seed=1, exclude=puzzles)


def test_excluded_puzzles_are_not_generated() -> None:
    """Symmetric copies of the excluded puzzles are not generated either."""
    seen = sudoku.generate(30, size=4, seed=0)
    copies = sudoku.augment(seen.questions, seen.answers, np.random.default_rng(0))
    exclude = PuzzleSet(kind="sudoku", questions=copies[0], answers=copies[1])
    fresh = sudoku.generate(6, size=4, seed=1, exclude=exclude)
    forms = {renamed(q) for q in seen.questions}
    assert not any(forms & orbit(question) for question in fresh.questions)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": 5}, "size=5"),
        ({"num": -1}, "num=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"clues": 0}, "clues=0"),
        ({"clues": 37}, "clues=37"),
        ({"clues": 7}, "Only 0 of 1 different puzzles with 7 clues of size 6"),
    ],
)
def test_invalid_settings_are_refused(arguments: dict[str, int], says: str) -> None:
    """With a ConfigError. No 6 x 6 puzzle has 7 clues."""
    with pytest.raises(ConfigError, match=says):
        sudoku.generate(**{"num": 1, "size": 6, "seed": 0} | arguments)


def test_solved_grids_are_diverse() -> None:
    """Random 6 x 6 grids belong to most of the 49 classes up to symmetry."""
    grids = _solved_grids(1000, 6, np.random.default_rng(0))
    assert sudoku.solves(grids, grids).all()
    forms = np.unique(sudoku.canonical(grids, grids), axis=0)
    assert 36 <= len(forms) <= 49


# Symmetry


@pytest.mark.parametrize("size", SIZES)
@given(seed=SEEDS)
@QUICK
def test_copies_have_the_same_canonical_form(size: int, drawn: dict[int, PuzzleSet], seed: int) -> None:
    """A symmetry keeps form, invariant and solution."""
    puzzles = drawn[size][:3]
    questions, answers = sudoku.augment(puzzles.questions, puzzles.answers, np.random.default_rng(seed))
    assert questions.dtype == answers.dtype == np.uint8
    assert sudoku.solves(questions, answers).all()
    np.testing.assert_array_equal(invariants(questions), invariants(puzzles.questions))
    form = sudoku.canonical(puzzles.questions, puzzles.answers)
    np.testing.assert_array_equal(sudoku.canonical(questions, answers), form)


@given(seed=SEEDS)
@QUICK
def test_forms_of_size_4_are_equal_exactly_for_copies(seed: int) -> None:
    """Brute force over all 128 symmetries agrees, for minimal and other puzzles."""
    rng = np.random.default_rng(seed)
    solved = np.stack(all_solved(4))
    answers = solved[rng.integers(288, size=40)]
    questions = np.where(rng.random((40, 4, 4)) < 0.4, answers, np.uint8(0))
    # A form stands for a puzzle: a question with its one answer.
    ones = [i for i, question in enumerate(questions) if sudoku.count_solutions(question) == 1][:12]
    questions, answers = questions[ones], answers[ones]
    both = answers + np.where(questions > 0, np.uint8(10), np.uint8(0))
    forms = sudoku.canonical(questions, answers).reshape(len(ones), -1)
    orbits = [pair_orbit(grid) for grid in both]
    for i, j in itertools.combinations(range(len(ones)), 2):
        assert (forms[i] == forms[j]).all() == bool(orbits[i] & orbits[j])


def pair_orbit(both: Grid) -> set[bytes]:
    """All copies of a solved grid in which 10 is added to clues; digits alone are renamed."""
    found = set()
    orders = [np.array(order) for order in line_orders(4, 2)]
    for side in (both, both.T):
        for rows in orders:
            for columns in orders:
                copy = side[rows][:, columns]
                found.add(renamed(copy % 10) + (copy > 10).tobytes())
    return found


def test_a_form_is_itself_a_copy(drawn: dict[int, PuzzleSet]) -> None:
    """Brute force over all 3,456 symmetries of 6 x 6 finds it, so puzzles with equal forms are copies of each other."""
    puzzles = drawn[6][:4]
    for question, form in zip(puzzles.questions, sudoku.canonical(puzzles.questions, puzzles.answers), strict=True):
        assert renamed(form) in orbit(question)


def test_other_puzzles_have_other_forms(drawn: dict[int, PuzzleSet]) -> None:
    """Exchanging one clue of a 9 x 9 puzzle changes its form, unless the solved grid is symmetric."""
    puzzles = drawn[9][:20]
    others = puzzles.questions.copy()
    for other, answer in zip(others, puzzles.answers, strict=True):
        given_, blank = np.argwhere(other)[3], np.argwhere(other == 0)[7]
        other[tuple(given_)], other[tuple(blank)] = 0, answer[tuple(blank)]
    mine, theirs = (sudoku.canonical(q, puzzles.answers) for q in (puzzles.questions, others))
    assert (mine != theirs).any(axis=(1, 2)).all()
    assert (invariants(puzzles.questions) != invariants(others)).all()


def test_augmenting_reaches_all_copies(drawn: dict[int, PuzzleSet]) -> None:
    """All copies of a 4 x 4 puzzle are about equally frequent, and the input does not change."""
    one = drawn[4][np.zeros(60_000, int)]
    kept = one.questions.copy()
    both = [sudoku.augment(one.questions, one.answers, np.random.default_rng(0))[0] for _ in range(2)]
    np.testing.assert_array_equal(*both)
    np.testing.assert_array_equal(one.questions, kept)
    counts = np.unique(both[0].reshape(60_000, -1), axis=0, return_counts=True)[1]
    assert {renamed(grid) for grid in both[0][:5000]} == orbit(one.questions[0])
    assert counts.max() < 2.5 * counts.mean()
    assert counts.min() > 0.3 * counts.mean()


def test_equivalent_pairs_are_found(drawn: dict[int, PuzzleSet]) -> None:
    """Copies are found with the puzzle that they copy. Other puzzles and other sizes are not."""
    train, rng = drawn[9], np.random.default_rng(1)
    fresh = sudoku.generate(5, size=9, seed=77, exclude=train)
    hidden = train[np.array([31, 4])]
    questions, answers = sudoku.augment(
        np.concatenate([fresh.questions, hidden.questions]), np.concatenate([fresh.answers, hidden.answers]), rng
    )
    test = PuzzleSet(kind="sudoku", questions=questions, answers=answers)
    assert sudoku.equivalent_pairs(test, train).tolist() == [[5, 31], [6, 4]]
    assert sudoku.equivalent_pairs(test, drawn[4]).shape == (0, 2)


def test_a_question_with_several_solutions_is_recognised(drawn: dict[int, PuzzleSet]) -> None:
    """A csv may give different solutions to two copies of one question. They count as copies, and other questions do
    not.
    """
    for one, other in itertools.combinations(np.split(drawn[4].answers, len(drawn[4])), 2):
        question = np.where(one == other, one, 0).astype(np.uint8)
        if (sudoku.canonical(question, one) != sudoku.canonical(question, other)).any():
            break  # no symmetry of the question makes one of these solutions the other
    else:
        raise AssertionError("no such pair was drawn")
    fewer = question.copy()
    fewer.reshape(-1)[np.flatnonzero(question)[0]] = 0
    turned = sudoku.augment(np.concatenate([fewer, question]), np.concatenate([other] * 2), np.random.default_rng(0))
    test = PuzzleSet(kind="sudoku", questions=turned[0], answers=turned[1])
    train = PuzzleSet(kind="sudoku", questions=question, answers=one)
    assert sudoku.equivalent_pairs(test, train).tolist() == [[1, 0]]


def test_equal_invariants_do_not_prove_equality(drawn: dict[int, PuzzleSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if all invariants were equal, only true copies would count as copies."""
    monkeypatch.setattr("attractor.data.sudoku.symmetry.invariants", lambda q: np.zeros(len(q), np.uint64))
    puzzles = drawn[6]
    copies = sudoku.augment(puzzles.questions[:3], puzzles.answers[:3], np.random.default_rng(0))
    seen = Seen()
    assert seen.add(puzzles.questions, puzzles.answers).all()
    assert not seen.add(*copies).any()
    assert seen.find(*copies).tolist() == [0, 1, 2]


def test_a_canonical_form_needs_a_correct_answer(drawn: dict[int, PuzzleSet]) -> None:
    """The index of a wrong answer is named."""
    puzzles = drawn[9][:2]
    with pytest.raises(DataError, match="answer 0"):
        sudoku.canonical(puzzles.questions, puzzles.answers[::-1])


# Text


@pytest.mark.parametrize("size", SIZES)
def test_parsing_undoes_rendering(size: int, drawn: dict[int, PuzzleSet]) -> None:
    """For drawings and lines, with '.' or '0' for blanks, one or several grids of mixed sizes."""
    for question in drawn[size].questions[:3]:
        line = "".join(map(str, question.reshape(-1)))
        drawing = sudoku.render(question)
        for text in (drawing, line, line.replace("0", "."), f"\n{drawing}\n\n", drawing.replace("|", " ")):
            np.testing.assert_array_equal(sudoku.parse(text), question)
    many = [drawn[s].questions[i] for i in range(2) for s in SIZES]
    for between, form in (("\n\n", sudoku.render), ("\n", sudoku.render), ("\n", lambda g: "".join(map(str, g.flat)))):
        parsed = [placed.grid for placed in sudoku.parse_all(between.join(map(form, many)))]
        assert len(parsed) == len(many)
        assert all((one == other).all() for one, other in zip(parsed, many, strict=True))


def test_a_drawing_has_the_lines_of_its_boxes() -> None:
    """Boxes of size 6 have 2 rows and 3 columns."""
    grid = np.arange(36, dtype=np.uint8).reshape(6, 6) % 7
    assert sudoku.render(grid).split("\n")[:4] == [
        "0 1 2 | 3 4 5".replace("0", "."),
        "6 . 1 | 2 3 4",
        "------+------",
        "5 6 . | 1 2 3",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "t: there is no puzzle"),
        ("12x4\n", "t, line 1: unexpected 'x'"),
        ("\n123\n", "t, line 2: has 3 cells; give 4, 6 or 9"),
        ("1234\n....\n12\n", "t, line 3: has 2 cells; give 4 as in line 1"),
        ("1234\n....\n", "t, line 2: ends after 2 rows of 4"),
        ("1234\n\n....\n", "t, line 2: a blank line after 1 rows"),
        ("1234\n5...\n....\n....\n", "t, line 1: has the digit 5 in a puzzle of size 4"),
        ("1" + "." * 15 + "\n" + "." * 16, "t: holds 2 puzzles"),
    ],
)
def test_malformed_text_is_reported_with_its_line(text: str, says: str) -> None:
    """The error says what is wrong, where, and what to do."""
    with pytest.raises(DataError) as caught:
        sudoku.parse(text, source="t")
    assert says in str(caught.value)


PASTED = {
    "zeros": "0 1 0 0\n0 0 3 0\n0 2 0 0\n0 0 0 4",
    "underscores": "_1__\n__3_\n_2__\n___4",
    "stars": "*1**\n**3*\n*2**\n***4",
    "sdm": ".1....3..2.....4\r\n",
    "ss": "*-----*\n|.1|..|\n|..|3.|\n|-----|\n|.2|..|\n|..|.4|\n*-----*",
    "sdk": "#A An author\n#D A description\n[Puzzle]\n.1..\n..3.\n.2..\n...4\n",
    "Unicode": "┌──┬──┐\n│.1│..│\n│..│3.│\n├──┼──┤\n│.2│..│\n│..│.4│\n└──┴──┘",
    "Markdown": "| . | 1 | . | . |\n| . | . | 3 | . |\n| . | 2 | . | . |\n| . | . | . | 4 |",
}


@pytest.mark.parametrize("name", PASTED)
def test_what_people_paste_is_read(name: str) -> None:
    """Blanks and boxes as on web pages and in the files of Sudoku programs."""
    expected = [[0, 1, 0, 0], [0, 0, 3, 0], [0, 2, 0, 0], [0, 0, 0, 4]]
    assert sudoku.parse(PASTED[name]).tolist() == expected


def test_a_csv_of_a_known_collection_is_read(tmp_path: Path) -> None:
    """With its own names for the columns, and without ratings."""
    (drawn,) = (sudoku.generate(1, size=4, clues=6, seed=0),)
    question, answer = ("".join(map(str, grids[0].flat)) for grids in (drawn.questions, drawn.answers))
    for header in ("quizzes,solutions", "Puzzle,Solution"):
        file = tmp_path / "other.csv"
        file.write_text(f"{header}\n{question},{answer}\n")
        np.testing.assert_array_equal(sudoku.SUDOKU.read_table(file).answers, drawn.answers)


def test_files_are_read_as_text_or_csv(tmp_path: Path, drawn: dict[int, PuzzleSet]) -> None:
    """The suffix decides. Unreadable files raise a DataError with the path."""
    text, table = tmp_path / "a.txt", tmp_path / "a.csv"
    text.write_text("\n\n".join(sudoku.render(q) for q in drawn[6].questions[:3]))
    lines = ["".join(map(str, grids.reshape(-1))) for grids in (drawn[6].questions[0], drawn[6].answers[0])]
    table.write_text(f"source,question,answer,rating\nme,{lines[0]},{lines[1]},3\n")
    assert len(SUDOKU.read(text)) == 3
    np.testing.assert_array_equal(SUDOKU.read(table)[0].grid, drawn[6].questions[0])
    with pytest.raises(DataError, match="cannot be read"):
        SUDOKU.read(tmp_path / "none.txt")
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        SUDOKU.read(text)


@pytest.mark.parametrize("size", SIZES)
def test_verdicts_say_what_is_wrong_and_where(size: int, drawn: dict[int, PuzzleSet]) -> None:
    """Changed givens, blanks, wrong shapes and repeated digits are named, with row and column from 1."""
    question, answer = drawn[size].questions[0], drawn[size].answers[0]
    assert sudoku.verdict(question, answer).is_correct
    assert str(sudoku.verdict(question, answer)) == "verified: solved"
    row, column = np.argwhere(question)[0]
    changed = answer.copy()
    changed[row, column] = answer[row, column] % size + 1
    given_ = question[row, column]
    assert f"changes the given {given_} at row {row + 1}, column {column + 1}" in str(sudoku.verdict(question, changed))
    row, column = np.argwhere(question == 0)[-1]
    blank, wrong = answer.copy(), answer.copy()
    blank[row, column] = 0
    assert f"leaves row {row + 1}, column {column + 1} blank" in str(sudoku.verdict(question, blank))
    wrong[row, column] = answer[row, column] % size + 1
    assert f"has the digit {wrong[row, column]} twice in row {row + 1}" in str(sudoku.verdict(question, wrong))
    assert "shape" in str(sudoku.verdict(question, answer[1:]))
    whole = np.stack([answer, changed, blank, wrong])
    assert sudoku.solves(np.stack([question] * 4), whole).tolist() == [True, False, False, False]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared Sudokus are not next to this checkout")
def test_published_puzzles_are_read_and_solved() -> None:
    """The solver finds the given answers, and no test puzzle is a copy of a training puzzle."""
    train, test = (SUDOKU.read_table(SHARED / f"{name}.csv") for name in ("train", "test"))
    assert (len(train), len(test)) == (10_000, 2_000)
    assert train.ratings is not None
    for question, answer in zip(test.questions[:20], test.answers[:20], strict=True):
        np.testing.assert_array_equal(sudoku.solve(question), answer)
    assert len(sudoku.equivalent_pairs(test, train)) == 0
