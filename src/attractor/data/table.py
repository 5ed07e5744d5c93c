"""Puzzles in a csv with the columns source, question, answer and rating, as in Sudoku-Extreme and Maze-Hard."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.errors import DataError
from attractor.files import first_line

_COLUMNS = ("question", "answer", "rating")
_OTHER_NAMES = {"puzzle": "question", "puzzles": "question", "quizzes": "question", "solution": "answer"}
_OTHER_NAMES |= {"solutions": "answer"}  # of well-known collections
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_BATCH = 1 << 15  # rows that are read at a time
_UNKNOWN = 255  # the value of characters that are not allowed


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a csv: ``questions`` and ``answers`` (N, cells), ``ratings`` (N,), and the line of each row.

    Without answers, ``answers`` are zeros and ``ratings`` too. A csv may have no ratings.
    """

    file: Path
    lines: Sequence[int]
    questions: NDArray[np.uint8]
    answers: NDArray[np.uint8]
    ratings: NDArray[np.int32]

    def place(self, row: int | np.intp) -> str:
        """Return file and line of a row."""
        return f"{self.file}, line {self.lines[int(row)]}"

    def error(self, row: int | np.intp, what: str) -> DataError:
        """Return an error about a row, to raise."""
        return DataError(f"{self.place(row)}: {what}")


def read_rows(
    source: str | os.PathLike[str],
    split: str,
    *,
    num_cells: Sequence[int],
    values: Mapping[str, int],
    answers: bool = True,
) -> Iterator[Rows]:
    """Yield the rows of a csv, thousands at a time.

    Parameters
    ----------
    source
        A path, or the name ``owner/name`` of a hub dataset. Its file ``SPLIT.csv`` is downloaded to the hub's cache.
    num_cells
        The allowed numbers of cells of a grid. All grids have as many as the first.
    values
        The value of every allowed character.
    answers
        Whether to read the columns answer and, if there is one, rating; otherwise only question is needed.

    Raises
    ------
    DataError
        For missing columns, and for grids of another length or with other characters, with file and line.
    """
    file = _find_file(str(source), split)
    lookup = np.full(256, _UNKNOWN, np.uint8)
    for character, value in values.items():
        lookup[ord(character)] = value
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            names = [name.strip().lower() for name in next(reader, [])]
            header = [_OTHER_NAMES.get(name, name) for name in names]
            columns = _COLUMNS[: (3 if "rating" in header else 2) if answers else 1]
            for column in columns:
                if column not in header:
                    found = ",".join(names)[:200] or "nothing"
                    raise DataError(
                        f"{file}, line 1: has no column {column!r} but {found}; give source,question,answer,rating."
                    )
            places = [header.index(column) for column in columns]
            allowed: tuple[int, ...] = tuple(num_cells)
            for batch in _batches(reader):
                rows = _convert(file, batch, places, allowed, lookup)
                allowed = rows.questions.shape[1:]
                yield rows
            if len(allowed) > 1 or reader.line_num < 2:
                raise DataError(f"{file}: holds no puzzles; give at least one row below the header.")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as csv ({error}).") from error


def _batches(reader: Any) -> Iterator[list[tuple[int, list[str]]]]:
    """Yield lists of (line number, fields); empty lines are skipped."""
    batch: list[tuple[int, list[str]]] = []
    for fields in reader:
        if fields:
            batch.append((reader.line_num, fields))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _convert(
    file: Path,
    batch: Iterable[tuple[int, list[str]]],
    places: list[int],
    allowed: tuple[int, ...],
    lookup: NDArray[np.uint8],
) -> Rows:
    texts: tuple[list[str], list[str]] = ([], [])
    ratings, lines = [], []
    for line, fields in batch:
        where = f"{file}, line {line}"
        if len(fields) <= max(places):
            raise DataError(f"{where}: has {len(fields)} fields; give a value for each column of line 1.")
        for column, place, found in zip(_COLUMNS, places, texts, strict=False):
            text = fields[place]
            if len(text) not in allowed:
                lengths = " or ".join(map(str, allowed)) if len(allowed) < 4 else "a square number"
                raise DataError(f"{where}: the {column} has {len(text)} characters; give {lengths}.")
            allowed = (len(text),)
            found.append(text)
        ratings.append(_rating(where, fields[places[2]]) if len(places) > 2 else np.int32(0))
        lines.append(line)
    questions = _to_values(file, lines, "question", texts[0], lookup)
    answers = _to_values(file, lines, "answer", texts[1], lookup) if texts[1] else np.zeros_like(questions)
    return Rows(file=file, lines=lines, questions=questions, answers=answers, ratings=np.array(ratings, np.int32))


def _rating(where: str, text: str) -> np.int32:
    try:
        return np.int32(int(text))
    except (ValueError, OverflowError) as error:
        raise DataError(f"{where}: the rating {text[:20]!r} is no whole number of 32 bits; give one.") from error


def _to_values(
    file: Path, lines: list[int], column: str, texts: list[str], lookup: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    raw = np.frombuffer("".join(texts).encode("latin-1", "replace"), np.uint8).reshape(len(texts), -1)
    values = lookup[raw]
    for row, place in np.argwhere(values == _UNKNOWN):
        what = f"the {column} has an unexpected {texts[row][place]!r} as character {place + 1}"
        known = " ".join(repr(chr(c)) for c in np.flatnonzero(lookup != _UNKNOWN))
        raise DataError(f"{file}, line {lines[row]}: {what}; known are {known}.")
    return values


def _find_file(source: str, split: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.exists() or not _HUB_NAME.fullmatch(source) or path.suffix.lower() == ".csv":
        raise DataError(f"{source}: no such csv file, nor the name OWNER/NAME of a hub dataset; give one of these.")
    from huggingface_hub import hf_hub_download  # slow to import, and only needed here

    try:
        return Path(hf_hub_download(source, f"{split}.csv", repo_type="dataset"))
    except Exception as error:  # the library raises many classes: no network, no such dataset, no access
        raise DataError(
            f"{source} (no such file, so a dataset of the hub): {split}.csv cannot be fetched ({first_line(error)})."
        ) from error
