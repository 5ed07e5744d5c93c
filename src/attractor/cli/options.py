"""Checks of a command's options before it starts: numbers and paths that no command can use."""

import functools
import inspect
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import tyro

from attractor.config import require_number
from attractor.errors import ConfigError, DataError

P = ParamSpec("P")
R = TypeVar("R")
PLACEHOLDERS = {"prompt": "TEXT", "train": "FILE", "test": "FILE", "field": "NAME", "metric": "NAME", "logger": "NAME"}
PLACEHOLDERS |= {"init": "CHECKPOINT"}
OUTPUTS = ("out", "json", "gif", "plot")


def checked(command: Callable[P, R]) -> Callable[P, R]:
    """Check the options of a command before it runs."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in inspect.signature(command).bind(*args, **kwargs).arguments.items():
            for item in value if isinstance(value, tuple) else (value,):
                _check(name, item)
        _load_pytorch()
        return command(*args, **kwargs)

    signature = run.__signature__ = inspect.signature(command)  # type: ignore[attr-defined]
    run.__annotations__ = {name: _annotated(parameter) for name, parameter in signature.parameters.items()}
    del run.__wrapped__  # tyro would read that one
    # A description is one paragraph, which tyro folds at the width of the terminal.
    run.__doc__ = re.sub(r"\n {8,}", " ", inspect.getdoc(command) or "")
    return run


def _load_pytorch() -> None:
    """Import PyTorch, and say so in a terminal while it takes seconds."""
    notice, erase = ("loading PyTorch …", "\r\x1b[K") if sys.stderr.isatty() else ("", "")
    print(notice, end="", file=sys.stderr, flush=True)
    import torch  # noqa: F401

    print(erase, end="", file=sys.stderr, flush=True)


def _annotated(parameter: inspect.Parameter) -> Any:
    """Return the type of an option, with a placeholder that says what to give, and without a default that says nothing."""
    default, metavar = parameter.default, PLACEHOLDERS.get(parameter.name)
    says_nothing = default is None or default is False or default == ()
    if metavar is None and not says_nothing:
        return parameter.annotation
    hint = "" if says_nothing else None
    return Annotated[parameter.annotation, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]


def _check(name: str, value: Any) -> None:
    option = f"--{name.replace('_', '-')}"
    require_number(option, value)
    if not isinstance(value, str | Path):
        return
    if "\0" in str(value):
        raise ConfigError(f"{option} {value}: has a null character; remove it.")
    if name not in OUTPUTS and _is_named_pipe(value):
        raise ConfigError(f"{value}: is a named pipe, which may never end; give a file, or - for standard input.")


def _is_named_pipe(path: str | Path) -> bool:
    """Return whether a path is a pipe on a disk. Those that a shell opens are in /dev and /proc."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode) and not os.path.abspath(path).startswith(("/dev/", "/proc/"))
    except OSError:
        return False


def read_standard_input() -> str:
    """Return what is given on standard input. Raises DataError if it is not text."""
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8 text (byte {error.start}); give puzzles as plain text."
        ) from error
