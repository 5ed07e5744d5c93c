"""Prepare data from Python: text becomes token shards, and puzzles are generated or read from csv files into a folder.

Functions return summaries and never print. With ``progress=True`` they draw bars on standard error.
"""

import os
from pathlib import Path

from attractor.data.puzzles import is_puzzle_folder, read, read_index
from attractor.data.text import Shards, list_splits
from attractor.errors import DataError
from attractor.experiment.prepare.puzzles import (
    PuzzleSplit,
    PuzzleSummary,
    prepare_arc,
    prepare_mazes,
    prepare_sudoku,
    summarize,
)
from attractor.experiment.prepare.text import TextSplit, TextSummary, prepare_text, text_splits
from attractor.files.manifest import CHECKSUMS, verify_folder

__all__ = [
    "PuzzleSplit",
    "PuzzleSummary",
    "TextSplit",
    "TextSummary",
    "prepare_arc",
    "prepare_mazes",
    "prepare_sudoku",
    "prepare_text",
    "verify_data",
]


def verify_data(folder: Path | str) -> TextSummary | PuzzleSummary:
    """Read a folder of prepared text or puzzles completely, compare all checksums, and return its summary.

    Raises
    ------
    DataError
        If a file is damaged, or the folder holds neither.
    """
    folder = Path(folder)
    if os.path.lexists(folder / CHECKSUMS):  # a broken link is damage
        verify_folder(folder, DataError)
    if is_puzzle_folder(folder):
        return summarize(folder, {split: read(folder, split) for split in read_index(folder)["splits"]})
    for split in list_splits(folder):
        Shards(folder, split).verify()
    return TextSummary(folder=folder, splits=text_splits(folder))
