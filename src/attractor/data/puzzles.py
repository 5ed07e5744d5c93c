"""Puzzles with their answers: one shape for all kinds, a folder that keeps them, and the csv of others' data sets.

A folder holds ``index.json`` and, for every split, ``SPLIT-questions.npy``, ``SPLIT-answers.npy`` and, where puzzles are rated,
``SPLIT-ratings.npy``. It is written whole or not at all, and read with its checksums.
"""

import csv
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.config import suggestion
from attractor.errors import DataError

FORMAT = "attractor-puzzles-1"
KINDS = ("sudoku", "maze")
_COLUMNS = ("question", "answer", "rating")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_CHUNK = 1 << 24  # bytes read at once for a checksum
_ROWS = 1 << 15  # rows of a csv that are read at once


@dataclass(frozen=True, kw_only=True)
class Puzzles:
    """Puzzles of one kind and one size.

    Attributes
    ----------
    kind
        "sudoku" (0 for a blank, else a digit) or "maze" (values of :class:`attractor.data.maze.Cell`).
    questions, answers
        (N, H, W) uint8.
    ratings
        (N,) int32: how hard they are, by whatever measure their source has.
    """

    kind: str
    questions: NDArray[np.uint8]
    answers: NDArray[np.uint8]
    ratings: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"kind={self.kind!r}: give one of {', '.join(KINDS)}.")
        if self.questions.ndim != 3 or self.questions.shape != self.answers.shape:
            shapes = f"{self.questions.shape} and {self.answers.shape}"
            raise DataError(f"Questions and answers have shapes {shapes}; give both as one (N, H, W).")
        if self.questions.dtype != np.uint8 or self.answers.dtype != np.uint8:
            raise DataError(f"Questions and answers are {self.questions.dtype} and {self.answers.dtype}; give uint8.")
        if self.ratings is not None and self.ratings.shape != self.questions.shape[:1]:
            raise DataError(f"Ratings have shape {self.ratings.shape}; give one for each of {len(self)} puzzles.")

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, which: slice | NDArray[Any]) -> "Puzzles":
        return Puzzles(
            kind=self.kind,
            questions=self.questions[which],
            answers=self.answers[which],
            ratings=None if self.ratings is None else self.ratings[which],
        )

    @property
    def alphabet(self) -> str:
        """The character of each value in questions and answers."""
        return "# SGo" if self.kind == "maze" else ".123456789"[: self.questions.shape[1] + 1]

    @property
    def num_symbols(self) -> int:
        """How many values a question may hold."""
        return len(self.alphabet) - (self.kind == "maze")  # no path in a question

    @property
    def num_classes(self) -> int:
        """How many values an answer may hold."""
        return len(self.alphabet)


@dataclass(frozen=True)
class LocatedGrid:
    """A question ``grid`` (H, W) and the ``place`` where it was read, such as "file.txt, line 3", for what is to be said of it."""

    grid: NDArray[np.uint8]
    place: str


def write(folder: Path, splits: Mapping[str, Puzzles], *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write ``{"train": puzzles, "test": puzzles}``. The folder appears when it is complete.

    Parameters
    ----------
    folder
        Must not exist.
    splits
        All of one kind and one size, each with at least one puzzle.
    describe
        How they were made, as plain data; kept in the index.

    Raises
    ------
    DataError
        Where the folder exists or cannot be written, or the splits do not go together.
    """
    require_new(folder)
    kinds = {(p.kind, *p.questions.shape[1:]) for p in splits.values()}
    if len(kinds) != 1 or not all(map(len, splits.values())):
        raise DataError(f"{folder}: splits hold {_counts(splits)}; give all of one kind and size, and none empty.")
    for name, puzzles in splits.items():
        for values, limit in ((puzzles.questions, puzzles.num_symbols), (puzzles.answers, puzzles.num_classes)):
            if values.max() >= limit:
                raise DataError(f"{folder}: split {name!r} holds the value {values.max()}; the most is {limit - 1}.")
    part = folder.with_name(f".{folder.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        one = next(iter(splits.values()))
        index = {
            "format": FORMAT,
            "kind": one.kind,
            "height": one.questions.shape[1],
            "width": one.questions.shape[2],
            "alphabet": one.alphabet,
            "num_symbols": one.num_symbols,
            "num_classes": one.num_classes,
            "made": dict(metadata or {}),
            "splits": {name: _write_split(part, name, puzzles) for name, puzzles in splits.items()},
        }
        (part / "index.json").write_text(json.dumps(index, indent=2) + "\n")
        part.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read(folder: Path, split: str = "train") -> Puzzles:
    """Read one split, memory-mapped, after comparing the checksum of each of its files.

    Raises
    ------
    DataError
        Where the index or a file is not what was written, or there is no such split.
    """
    index = read_index(folder)
    if split not in index["splits"]:
        raise DataError(f"{folder}: has no split {split!r}; {suggestion(split, index['splits'])}")
    try:
        about, shape = index["splits"][split], (index["height"], index["width"])
        arrays = {name: _open(folder / f"{split}-{name}.npy", checksum) for name, checksum in about["files"].items()}
        puzzles = Puzzles(kind=index["kind"], **arrays)
        if puzzles.questions.shape != (about["num"], *shape):
            raise DataError(f"{folder}: the index speaks of {about['num']} puzzles of {shape[0]} x {shape[1]} cells")
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder / "index.json", error) from error
    return puzzles


def read_index(folder: Path) -> dict[str, Any]:
    """Return what stands in a folder's index: kind, height, width, alphabet, num_symbols, num_classes, made, splits."""
    file = folder / "index.json"
    try:
        index = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no index.json here; make one with: attractor data sudoku, or attractor data mazes."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}).") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{file}: not the index of puzzles (its format is not {FORMAT!r}).")
    if not isinstance(index.get("splits"), dict):
        raise _damaged(file, "no splits")
    return index


def require_new(folder: Path) -> None:
    """Refuse a place that is taken."""
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder}: exists already; choose another folder, or remove this one first.")


def _counts(splits: Mapping[str, Puzzles]) -> str:
    return ", ".join(f"{n}: {len(p)} {p.kind} {p.questions.shape[1:]}" for n, p in splits.items()) or "nothing"


def _write_split(folder: Path, name: str, puzzles: Puzzles) -> dict[str, Any]:
    arrays = {"questions": puzzles.questions, "answers": puzzles.answers}
    if puzzles.ratings is not None:
        arrays |= {"ratings": puzzles.ratings.astype("<i4")}
    for kind, array in arrays.items():
        np.save(folder / f"{name}-{kind}.npy", np.ascontiguousarray(array))
    return {"num": len(puzzles), "files": {kind: _checksum(folder / f"{name}-{kind}.npy") for kind in arrays}}


def _open(file: Path, checksum: int) -> NDArray[Any]:
    try:
        if _checksum(file) != checksum:
            what = "is not the file that was written (its checksum differs)"
            raise DataError(f"{file}: {what}; make the folder again.")
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); make the folder again.") from error


def _checksum(file: Path) -> int:
    checksum = 0
    with file.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _damaged(file: Path, what: object) -> DataError:
    return DataError(f"{file}: is damaged ({what}); make the folder again.")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a csv: ``questions`` and ``answers`` (N, cells) as codes, ``ratings``, and where each row stands."""

    file: Path
    lines: Sequence[int]
    questions: NDArray[np.uint8]
    answers: NDArray[np.uint8]
    ratings: NDArray[np.int32]

    def place(self, row: int | np.intp) -> str:
        return f"{self.file}, line {self.lines[int(row)]}"

    def fault(self, row: int | np.intp, what: str) -> DataError:
        return DataError(f"{self.place(row)}: {what}")


def read_csv(
    source: str | os.PathLike[str], split: str, *, num_cells: Sequence[int], codes: Mapping[str, int]
) -> Iterator[Rows]:
    """Yield the rows of a csv with the columns question, answer and rating, thousands at a time.

    Parameters
    ----------
    source
        A path, or the name ``owner/name`` of a hub dataset, whose file ``SPLIT.csv`` is then fetched and kept in the hub's cache.
    num_cells
        How long a grid may be; all have the length of the first.
    codes
        The value of every character that may occur.

    Raises
    ------
    DataError
        With file and line, for missing columns, and for grids of another length or with other characters.
    """
    file = _file(str(source), split)
    table = np.full(256, 255, np.uint8)
    for character, code in codes.items():
        table[ord(character)] = code
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            header = next(reader, [])
            for column in _COLUMNS:
                if column not in header:
                    names = ",".join(header) or "nothing"
                    raise DataError(
                        f"{file}, line 1: has no column {column!r} but {names}; give source,question,answer,rating."
                    )
            places = [header.index(column) for column in _COLUMNS]
            wanted: tuple[int, ...] = tuple(num_cells)
            for batch in _batches(reader):
                rows = _rows(file, batch, places, wanted, table)
                wanted = rows.questions.shape[1:]
                yield rows
            if len(wanted) > 1 or reader.line_num < 2:
                raise DataError(f"{file}: holds no puzzles; give at least one row below the header.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as csv ({error}).") from error


def _batches(reader: Any) -> Iterator[list[tuple[int, list[str]]]]:
    batch: list[tuple[int, list[str]]] = []
    for fields in reader:
        if fields:
            batch.append((reader.line_num, fields))
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _rows(
    file: Path,
    batch: Iterable[tuple[int, list[str]]],
    places: list[int],
    wanted: tuple[int, ...],
    table: NDArray[np.uint8],
) -> Rows:
    texts: tuple[list[str], list[str]] = ([], [])
    ratings, lines = [], []
    for line, fields in batch:
        where = f"{file}, line {line}"
        if len(fields) <= max(places):
            raise DataError(f"{where}: has {len(fields)} fields; give a value for each column of line 1.")
        for column, place, found in zip(_COLUMNS, places, texts, strict=False):
            text = fields[place]
            if len(text) not in wanted:
                lengths = " or ".join(map(str, wanted)) if len(wanted) < 4 else "a square number"
                raise DataError(f"{where}: the {column} has {len(text)} characters; give {lengths}.")
            wanted = (len(text),)
            found.append(text)
        try:
            ratings.append(np.int32(int(fields[places[2]])))
        except (ValueError, OverflowError) as error:
            raise DataError(f"{where}: the rating {fields[places[2]]!r} is no whole number; give one.") from error
        lines.append(line)
    grids = []
    for column, found in zip(_COLUMNS, texts, strict=False):
        raw = np.frombuffer("".join(found).encode("latin-1", "replace"), np.uint8).reshape(-1, *wanted)
        values = table[raw]
        for row, place in np.argwhere(values == 255):
            what = f"the {column} has an unexpected {found[row][place]!r} as character {place + 1}"
            known = " ".join(repr(chr(c)) for c in np.flatnonzero(table != 255))
            raise DataError(f"{file}, line {lines[row]}: {what}; known are {known}.")
        grids.append(values)
    return Rows(file=file, lines=lines, questions=grids[0], answers=grids[1], ratings=np.array(ratings, np.int32))


def _file(source: str, split: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.exists() or not _HUB_NAME.fullmatch(source) or path.suffix == ".csv":
        raise DataError(f"{source}: no such csv file, nor the name OWNER/NAME of a hub dataset; give one of these.")
    from huggingface_hub import hf_hub_download  # slow to import, and only needed here

    try:
        return Path(hf_hub_download(source, f"{split}.csv", repo_type="dataset"))
    except Exception as error:  # of many kinds: no network, no such dataset, no access
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(
            f"{source} (no such file, so a dataset of the hub): {split}.csv cannot be fetched ({reason})."
        ) from error
