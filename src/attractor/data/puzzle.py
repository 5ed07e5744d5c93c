"""What a kind of puzzle can do, and a set of puzzles of one kind.

Sudokus, mazes and ARC implement :class:`Puzzle`. All other code asks ``PUZZLES[kind]`` and does not know which kinds exist.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.config import suggestion
from attractor.data.table import Rows
from attractor.errors import DataError

Grid = NDArray[np.uint8]  # (H, W)
Grids = NDArray[np.uint8]  # (N, H, W)
Advance = Callable[[int], None]


@dataclass(frozen=True)
class LocatedGrid:
    """A question ``grid`` (H, W) and the ``place`` it was read from, such as "file.txt, line 3", for error messages."""

    grid: Grid
    place: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an answer is correct, one sentence that says why, ``str(verdict)``, and the (row, column) of wrong cells."""

    is_correct: bool
    message: str
    cells: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True)
class PuzzleSet:
    """Puzzles of one kind and one size, with their answers.

    Attributes
    ----------
    kind
        A key of ``PUZZLES``: "sudoku" (0 for a blank, else a digit), "maze" (values of
        :class:`attractor.data.maze.Cell`), or "arc" (values of :mod:`attractor.data.arc`).
    questions, answers
        (N, H, W) uint8.
    ratings
        (N,) int32, the difficulty in the unit of the source; None if there are no ratings.
    names, all_names
        (N,) int32, for puzzles with names (ARC): the place of each puzzle's name in ``all_names``. None without names.

    Raises
    ------
    DataError
        If the kind is unknown, or shapes or types do not fit.
    """

    kind: str
    questions: Grids
    answers: Grids
    ratings: NDArray[np.int32] | None = None
    names: NDArray[np.int32] | None = None
    all_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in PUZZLES:
            raise DataError(f"kind={self.kind!r}: give one of {', '.join(PUZZLES)}.")
        if self.questions.ndim != 3 or self.questions.shape != self.answers.shape:
            shapes = f"{self.questions.shape} and {self.answers.shape}"
            raise DataError(f"Questions and answers have shapes {shapes}; give both as one (N, H, W).")
        if self.questions.dtype != np.uint8 or self.answers.dtype != np.uint8:
            raise DataError(f"Questions and answers are {self.questions.dtype} and {self.answers.dtype}; give uint8.")
        for what, values in (("Ratings", self.ratings), ("Names", self.names)):
            if values is not None and values.shape != self.questions.shape[:1]:
                raise DataError(f"{what} have shape {values.shape}; give one for each of {len(self)} puzzles.")
        if self.names is not None and len(self) and not 0 <= self.names.min() <= self.names.max() < len(self.all_names):
            raise DataError(f"Names lie outside the list of {len(self.all_names)} names; make the puzzles again.")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, which: slice | NDArray[Any]) -> "PuzzleSet":
        return replace(
            self,
            questions=self.questions[which],
            answers=self.answers[which],
            ratings=None if self.ratings is None else self.ratings[which],
            names=None if self.names is None else self.names[which],
        )

    def __add__(self, other: "PuzzleSet") -> "PuzzleSet":
        """Return the puzzles of both sets. Ratings are kept if both have them. DataError if their lists of names differ."""
        if self.all_names != other.all_names:
            raise DataError("puzzles with different lists of names cannot be joined.")
        names = [part.names for part in (self, other) if part.names is not None]
        ratings = [part.ratings for part in (self, other) if part.ratings is not None]
        return PuzzleSet(
            kind=self.kind,
            questions=np.concatenate([self.questions, other.questions]),
            answers=np.concatenate([self.answers, other.answers]),
            ratings=np.concatenate(ratings) if len(ratings) == 2 else None,
            names=np.concatenate(names) if len(names) == 2 else None,
            all_names=self.all_names,
        )

    @property
    def puzzle(self) -> "Puzzle":
        """The implementation of this kind."""
        return PUZZLES[self.kind]

    @property
    def size(self) -> int:
        """The height of a grid, in cells."""
        return int(self.questions.shape[1])

    @property
    def alphabet(self) -> str:
        """The character of each value in questions and answers."""
        return self.puzzle.alphabet(self.size)

    @property
    def num_symbols(self) -> int:
        """How many values a cell of a question can have."""
        return self.puzzle.num_symbols(self.size)

    @property
    def num_classes(self) -> int:
        """How many values a cell of an answer can have."""
        return self.puzzle.num_classes(self.size)


class Puzzle(ABC):
    """One kind of puzzle. Grids are uint8: a question or an answer is (H, W), a batch (N, H, W).

    Puzzles that are learnt by their names, as in ARC, cannot be generated, nor read or checked one by one: such a kind leaves
    out ``parse``, ``tables``, ``generate``, ``check`` and ``verdict``, which then raise a DataError.

    Attributes
    ----------
    kind
        The name in ``PUZZLES``, in folders and in checkpoints.
    difficulty_name
        What :meth:`difficulty` measures.
    has_unique_answer
        Whether a question has exactly one correct answer. If not, :meth:`is_right` may accept several.
    ignored
        The value of answer cells that are neither trained nor compared; None if all cells count.
    num_auxiliary_classes
        How many values :meth:`auxiliary_targets` has.
    """

    kind: str
    difficulty_name: str
    has_unique_answer: bool
    ignored: int | None = None
    num_auxiliary_classes: int = 0

    @abstractmethod
    def alphabet(self, size: int) -> str:
        """Return the character of each value in grids of height ``size``."""

    @abstractmethod
    def num_symbols(self, size: int) -> int:
        """Return how many values a cell of a question can have."""

    def num_classes(self, size: int) -> int:
        """Return how many values a cell of an answer can have."""
        return len(self.alphabet(size))

    def box_shape(self, size: int) -> tuple[int, int] | None:
        """Return the (height, width) of the boxes that divide a grid of digits, or None for other grids."""
        return None

    def parse(self, text: str, *, source: str = "<text>") -> list[LocatedGrid]:
        """Return all questions in ``text``, which may differ in size, each with the line where it begins.

        Raises
        ------
        DataError
            For malformed text. The message names ``source`` and the line.
        """
        raise self._refusal()

    def is_text(self, argument: str) -> bool:
        """Return whether a command-line argument is a puzzle and not the name of a file."""
        return "\n" in argument

    def tables(
        self, source: str | os.PathLike[str], split: str, *, answers: bool = True
    ) -> Iterator[tuple[Rows, Grids, Grids]]:
        """Yield rows of a csv with their questions and answers, both checked. Without ``answers`` they are not read."""
        raise self._refusal()

    def read(self, path: str | os.PathLike[str]) -> list[LocatedGrid]:
        """Return all questions in a text file or in a csv, which needs no answers, each with its line.

        Raises DataError like :meth:`parse`.
        """
        path = Path(path)
        if path.suffix.lower() != ".csv":
            return self.parse(read_text(path), source=str(path))
        return [
            LocatedGrid(question, rows.place(row))
            for rows, questions, _ in self.tables(path, "train", answers=False)
            for row, question in enumerate(questions)
        ]

    def read_table(self, source: str | os.PathLike[str], split: str = "train") -> PuzzleSet:
        """Read a csv with the columns source, question, answer and rating: a grid is one string, row by row.

        Parameters
        ----------
        source
            A path, or a hub dataset ``OWNER/NAME`` with the file ``SPLIT.csv``.
        split
            The name of that file.

        Raises
        ------
        DataError
            For malformed rows and incorrect answers, with file and line.
        """
        parts = [(questions, answers, rows.ratings) for rows, questions, answers in self.tables(source, split)]
        questions, answers, ratings = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return PuzzleSet(kind=self.kind, questions=questions, answers=answers, ratings=ratings)

    def generate(
        self,
        num: int,
        *,
        seed: int,
        exclude: PuzzleSet | None = None,
        advance: Advance = lambda num: None,
        **settings: Any,
    ) -> PuzzleSet:
        """Return ``num`` random puzzles. None is a symmetric copy of another or of one in ``exclude``.

        ``advance`` is called with the number of puzzles just found. Raises ConfigError for settings that cannot work.
        """
        raise self._refusal()

    @abstractmethod
    def augment(self, questions: Grids, answers: Grids, rng: np.random.Generator) -> tuple[Grids, Grids]:
        """Apply a random symmetry to each puzzle, the same to question and answer."""

    def crop(self, questions: Grids, answers: Grids, size: int, rng: np.random.Generator) -> tuple[Grids, Grids]:
        """Return a random window (N, size, size) of each puzzle that is a puzzle itself, and its answer."""
        raise DataError(f"a {self.kind} has no windows that are puzzles; leave supervision.windows empty.")

    def auxiliary_targets(self, questions: Grids) -> NDArray[np.int64]:
        """Return a class (N, H, W) of every cell that an auxiliary loss teaches beside the answer; -1 for no class."""
        raise DataError(f"a {self.kind} has no auxiliary targets; leave supervision.auxiliary_weight at 0.")

    @abstractmethod
    def find_copies(self, test: PuzzleSet, train: PuzzleSet) -> NDArray[np.int64]:
        """Return the indices in ``test`` of puzzles that are symmetric copies of a puzzle in ``train``."""

    def check(self, question: Grid) -> None:
        """Raise a DataError for a question without an answer that counts."""
        raise self._refusal()

    def verdict(self, question: Grid, answer: Grid) -> Verdict:
        """Return whether ``answer`` is correct, and a sentence that says what is wrong and where."""
        raise self._refusal()

    def is_right(self, questions: Grids, answers: Grids, labels: Grids) -> NDArray[np.bool_]:
        """Return for each answer (N, H, W) whether it is correct. ``labels`` are the known answers."""
        is_equal = answers == labels
        return np.asarray((is_equal if self.ignored is None else is_equal | (labels == self.ignored)).all(axis=(1, 2)))

    @abstractmethod
    def render(self, grid: Grid) -> str:
        """Return a grid as text, which :meth:`parse` reads if it is a question."""

    @abstractmethod
    def difficulty(self, puzzles: PuzzleSet) -> float:
        """Return the mean difficulty of a set, as a number of ``difficulty_name``."""

    def _refusal(self) -> DataError:
        return DataError(
            f"a puzzle of the kind {self.kind} is learnt in training, with its name, and is not generated or solved alone; use "
            f"attractor data {self.kind}, train and evaluate."
        )


PUZZLES: dict[str, Puzzle] = {}  # by kind; ``attractor.data`` registers its own


def find_puzzle(kind: str) -> Puzzle:
    """Return the implementation of a kind. Raises DataError for an unknown one."""
    if kind not in PUZZLES:
        raise DataError(f"there are no puzzles of the kind {kind!r}; {suggestion(kind, PUZZLES)}")
    return PUZZLES[kind]


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file; a byte order mark is removed. Raises DataError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give a text file of puzzles.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as plain text.") from error
