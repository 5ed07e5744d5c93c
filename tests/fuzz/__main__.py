"""``python -m tests.fuzz [NUM] [SEED]``: try generated cases, print each that ends badly, and exit with 1 if any does."""

import sys
import tempfile
from pathlib import Path

from tests.fuzz.cases import generate, make_folder, run


def fuzz(num: int, seed: int) -> int:
    """Return the number of cases that ended badly."""
    num_bad = 0
    with tempfile.TemporaryDirectory() as name:
        make_folder(Path(name))
        for case in generate(num, seed):
            if (wrong := run(case, Path(name))) is not None:
                num_bad += 1
                print(f"{[a[:100] for a in case.arguments]!r}\n    {wrong}", flush=True)
    print(f"{num:,} cases, {num_bad} ended badly")
    return num_bad


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(min(fuzz(*[*numbers, *[3000, 0][len(numbers) :]]), 1))
