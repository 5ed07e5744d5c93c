"""``python -m tests.fuzz``: run generated cases of bad input, print each that ends badly, and exit with 1 if any does."""

import argparse
import faulthandler
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from tests.fuzz.case import run
from tests.fuzz.suite import make_case, make_folder

from attractor.progress import TaskProgress


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--num", type=int, default=3600, help="number of cases (default: %(default)s, about ten minutes)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases; another one gives other cases")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="run only the case with this number, and show its command")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    numbers = range(options.first, options.first + options.num) if options.case is None else [options.case]
    num_bad, console = 0, Console(file=sys.__stderr__)
    with tempfile.TemporaryDirectory() as name, TaskProgress(lines=True, console=console) as bars:
        folder = Path(name, "work")  # in a folder of its own, for cases that write to ".."
        folder.mkdir()
        make_folder(folder)
        advance = bars.follow("cases")
        for done, number in enumerate(numbers, start=1):
            case = make_case(options.seed, number)
            shown = f"case {number}: attractor {' '.join(repr(a[:100]) for a in case.arguments)}"
            if options.case is not None:
                print(shown)
            faulthandler.dump_traceback_later(900, exit=True)  # for a hang outside of Python
            advance(done - 1, len(numbers), f"case {number}")  # which a crash leaves on the screen
            if (wrong := run(case, folder)) is not None:
                num_bad += 1
                print(
                    f"{shown}\n    {wrong}\n    repeat it: python -m tests.fuzz --seed {options.seed} --case {number}",
                    flush=True,
                )
            advance(done, len(numbers), "")
        faulthandler.cancel_dump_traceback_later()
    print(f"{len(numbers):,} cases of seed {options.seed}, {num_bad} ended badly")
    return min(num_bad, 1)


if __name__ == "__main__":
    sys.exit(main())
