"""Start a benchmark from the command line, with ``--help``, and with ``--out`` for the folder of its results.

Without ``--out`` results go to ``runs/benchmarks``, so that a try does not replace those in ``results/``.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tyro

from attractor.files.lock import OwnedError, owner_lock

TRIES = Path("runs/benchmarks")


def run_command(*functions: Callable[..., None], default: str | None = None) -> None:
    """Run the benchmark in ``__main__``: its one function, or the one that is named first among the arguments."""
    module: Any = sys.modules["__main__"]
    settings: dict[str, Any] = {"prog": f"python -m {module.__spec__.name}", "description": module.__doc__}
    settings |= {"args": sys.argv[1:] or [default]} if default else {}
    commands = {function.__name__: with_out(function, module) for function in functions}
    if len(commands) == 1:
        tyro.cli(*commands.values(), **settings)
    else:
        tyro.extras.subcommand_cli_from_dict(commands, **settings)


def with_out(function: Callable[..., None], module: Any) -> Callable[..., None]:
    """Return the function with an option ``out``, which replaces the folder of ``module.OUT``."""
    tracked: Path = module.OUT  # a folder, or one file
    folder = tracked.parent if tracked.suffix else tracked

    @functools.wraps(function)
    def run(*args: Any, out: Path, **settings: Any) -> None:
        out.mkdir(parents=True, exist_ok=True)
        module.OUT = out / tracked.name if tracked.suffix else out
        function(*args, **settings)
        print(f"results: {out}/")

    own = inspect.signature(function)
    del run.__wrapped__  # type: ignore[attr-defined]  # tyro would read the options of that one
    out = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=TRIES / folder.name, annotation=Path)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), out])  # type: ignore[attr-defined]
    run.__annotations__ = function.__annotations__ | {"out": Path}
    about = inspect.getdoc(function) or "Measure, print and write."
    about += "" if "Args:" in about else "\n\nArgs:"
    run.__doc__ = (
        f"{about}\n    out: The folder for results, and for earlier ones that are read. The committed ones: {folder}."
    )
    return run


@contextmanager
def claim(folder: Path, name: str) -> Iterator[bool]:
    """Yield whether this process may make the run ``name``; if another one is making it, say so."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(owner_lock(folder / f"{name}.lock"))
        except OwnedError as error:
            print(f"{name}: left out; {error}")
            yield False
        else:
            yield True
