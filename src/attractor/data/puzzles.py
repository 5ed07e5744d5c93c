"""Puzzles in a folder.

A folder holds ``index.json`` and, for every split, ``SPLIT-questions.npy``, ``SPLIT-answers.npy`` and, if the puzzles
have ratings or names, ``SPLIT-ratings.npy`` and ``SPLIT-names.npy``. It appears when it is complete, and its checksums
are compared when it is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.config import suggestion
from attractor.data.puzzle import PuzzleSet
from attractor.errors import DataError
from attractor.files import checksum, first_line, member, new_folder, read_json, require_free, write_json
from attractor.files.manifest import write_checksums

FORMAT = "attractor-puzzles-1"
# Training puzzles are generated with seeds below the first number, test puzzles with seeds from there up, and development
# puzzles, on which settings are chosen, from the second up: no split of one seed is another split of another seed.
FIRST_TEST_SEED, FIRST_DEV_SEED = 2**32, 2**33
MAX_DEV = 100


def num_dev(num_train: int) -> int:
    """Return the number of development puzzles for so many training puzzles."""
    return min(MAX_DEV, max(1, num_train // 10))


def write(folder: Path, splits: Mapping[str, PuzzleSet], *, metadata: Mapping[str, Any] | None = None) -> None:
    """Write ``{"train": puzzles, "test": puzzles}``. The folder appears when it is complete.

    Parameters
    ----------
    folder
        Must not exist.
    splits
        All of one kind and one size, each with at least one puzzle.
    metadata
        How the puzzles were made, as plain data; kept in the index.

    Raises
    ------
    ConfigError
        If the folder exists or cannot be written.
    DataError
        If the splits differ in kind or size, one is empty, or a value is out of range.
    """
    require_free(folder)
    kinds = {(p.kind, *p.questions.shape[1:]) for p in splits.values()}
    if len(kinds) != 1 or not all(map(len, splits.values())):
        counts = ", ".join(f"{n}: {len(p)} {p.kind} {p.questions.shape[1:]}" for n, p in splits.items()) or "nothing"
        raise DataError(f"{folder}: splits hold {counts}; give all of one kind and size, and none empty.")
    for name, puzzles in splits.items():
        _check_values(folder, name, puzzles)
    first = next(iter(splits.values()))
    with new_folder(folder) as part:
        index = {
            "format": FORMAT,
            "kind": first.kind,
            "height": first.questions.shape[1],
            "width": first.questions.shape[2],
            "alphabet": first.alphabet,
            "num_symbols": first.num_symbols,
            "num_classes": first.num_classes,
            "metadata": dict(metadata or {}),
            "names": list(first.all_names),
            "splits": {name: _write_split(part, name, puzzles) for name, puzzles in splits.items()},
        }
        write_json(part / "index.json", index)
        write_checksums(part)


def read(folder: Path, split: str = "train") -> PuzzleSet:
    """Read one split, memory-mapped, and compare the checksum of each of its files.

    Raises
    ------
    DataError
        If the index or a file is damaged, or the split does not exist.
    """
    index = read_index(folder)
    if split not in index["splits"]:
        raise DataError(f"{folder}: has no split {split!r}; {suggestion(split, index['splits'])}")
    try:
        about, shape = index["splits"][split], (index["height"], index["width"])
        arrays = {}
        for name, expected in about["files"].items():
            arrays[name] = _open(member(folder, f"{split}-{name}.npy", DataError, folder / "index.json"), expected)
        puzzles = PuzzleSet(kind=index["kind"], **arrays, all_names=tuple(index.get("names", ())))
        _check_values(folder, split, puzzles)
        if puzzles.questions.shape != (about["num"], *shape):
            raise DataError(
                f"{folder}: its index names {about['num']} puzzles of {shape[0]} x {shape[1]} cells, but the files hold "
                f"{puzzles.questions.shape}; make the folder again."
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(folder / "index.json", error) from error
    return puzzles


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index: kind, height, width, alphabet, num_symbols, num_classes, metadata, splits.

    Raises
    ------
    DataError
        If the folder has no index, or one of another format.
    """
    file = folder / "index.json"
    if not file.exists():
        state = "holds no puzzles" if folder.exists() else "does not exist"
        raise DataError(f"{folder}: {state}; make a folder with: attractor data sudoku, mazes, or arc.")
    index = read_json(file, DataError, advice="make the folder again")
    if index.get("format") != FORMAT:
        raise DataError(f"{file}: not the index of puzzles (its format is not {FORMAT!r}); give another folder.")
    if not isinstance(index.get("splits"), dict):
        raise _damaged(file, "no splits")
    return index


def is_puzzle_folder(folder: Path) -> bool:
    """Return whether a folder has an index of puzzles."""
    try:
        return bool(read_index(folder))
    except DataError:
        return False


def _write_split(folder: Path, name: str, puzzles: PuzzleSet) -> dict[str, Any]:
    arrays: dict[str, NDArray[Any]] = {"questions": puzzles.questions, "answers": puzzles.answers}
    if puzzles.ratings is not None:
        arrays |= {"ratings": puzzles.ratings.astype("<i4")}
    if puzzles.names is not None:
        arrays |= {"names": puzzles.names.astype("<i4")}
    for array_name, array in arrays.items():
        np.save(folder / f"{name}-{array_name}.npy", np.ascontiguousarray(array))
    return {"num": len(puzzles), "files": {key: checksum(folder / f"{name}-{key}.npy") for key in arrays}}


def _check_values(folder: Path, name: str, puzzles: PuzzleSet) -> None:
    if not len(puzzles):
        raise DataError(f"{folder}: split {name!r} holds no puzzles; make the folder again.")
    for values, limit in ((puzzles.questions, puzzles.num_symbols), (puzzles.answers, puzzles.num_classes)):
        if values.max() >= limit:
            raise DataError(f"{folder}: split {name!r} holds the value {values.max()}; the most is {limit - 1}.")


def _open(file: Path, expected: int) -> NDArray[Any]:
    try:
        if checksum(file) != expected:
            raise DataError(f"{file}: is not the file that was written (its checksum differs); make the folder again.")
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: cannot be read ({first_line(error)}); make the folder again.") from error


def _damaged(file: Path, what: object) -> DataError:
    return DataError(f"{file}: is damaged ({what}); make the folder again.")
