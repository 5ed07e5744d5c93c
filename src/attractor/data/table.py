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
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_BATCH = 1 << 15  # rows that are read at a time
_UNKNOWN = 255  # the value of characters that are not allowed


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some rows of a csv: ``questions`` and ``answers`` (N, cells), ``ratings`` (N,), and the line of each row."""

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
    source: str | os.PathLike[str], split: str, *, num_cells: Sequence[int], values: Mapping[str, int]
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
            header = next(reader, [])
            for column in _COLUMNS:
                if column not in header:
                    names = ",".join(header) or "nothing"
                    raise DataError(
                        f"{file}, line 1: has no column {column!r} but {names}; give source,question,answer,rating."
                    )
            places = [header.index(column) for column in _COLUMNS]
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
        try:
            ratings.append(np.int32(int(fields[places[2]])))
        except (ValueError, OverflowError) as error:
            raise DataError(f"{where}: the rating {fields[places[2]]!r} is no whole number; give one.") from error
        lines.append(line)
    questions, answers = (
        _to_values(file, lines, column, found, lookup) for column, found in zip(_COLUMNS, texts, strict=False)
    )
    return Rows(file=file, lines=lines, questions=questions, answers=answers, ratings=np.array(ratings, np.int32))


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
    if path.exists() or not _HUB_NAME.fullmatch(source) or path.suffix == ".csv":
        raise DataError(f"{source}: no such csv file, nor the name OWNER/NAME of a hub dataset; give one of these.")
    from huggingface_hub import hf_hub_download  # slow to import, and only needed here

    try:
        return Path(hf_hub_download(source, f"{split}.csv", repo_type="dataset"))
    except Exception as error:  # the library raises many classes: no network, no such dataset, no access
        raise DataError(
            f"{source} (no such file, so a dataset of the hub): {split}.csv cannot be fetched ({first_line(error)})."
        ) from error
