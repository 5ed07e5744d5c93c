"""All cases by number: the input files that they need, and a case by its seed and number."""

import contextlib
import io
import random
from pathlib import Path

from tests.fuzz import language_cases, puzzle_cases
from tests.fuzz.case import Case, make_odd_paths

KINDS = (*puzzle_cases.KINDS, *language_cases.KINDS)


def make_folder(folder: Path) -> None:
    """Write the input files of all cases."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        puzzle_cases.make_puzzles(folder)
        language_cases.make_language(folder)
    make_odd_paths(folder)


def make_case(seed: int, number: int) -> Case:
    """Return a case. It depends on nothing else, so that it can be repeated."""
    return KINDS[number % len(KINDS)](random.Random(f"{seed}-{number}"))
