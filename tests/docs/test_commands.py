"""Every ``attractor`` command of the README and the documentation parses."""

import contextlib
import functools
import io
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
from tests.docs.pages import PAGES, blocks, name

from attractor.cli import arc, data, puzzles
from attractor.cli.commands import commands

DATA = {
    "prepare": data.prepare,
    "verify": data.verify,
    "sudoku": puzzles.sudoku,
    "mazes": puzzles.mazes,
    "arc": arc.arc,
}


def without_effect(command: Callable[..., Any]) -> Callable[..., None]:
    """Return a function with the signature of ``command`` that does nothing."""

    @functools.wraps(command)
    def parsed(*_: Any, **__: Any) -> None: ...

    return parsed


def shell_commands(page: Path) -> list[list[str]]:
    """Return the arguments of every ``attractor`` command in the shell blocks of a page."""
    found = []
    for block in blocks(page):
        if block.info not in ("", "bash"):
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace("$(", "("), comments=True)
            for number, word in enumerate(words):
                following = words[number + 1 : number + 2]
                if Path(word).name == "attractor" and following and following[0][:2] not in ("&&", "--"):
                    found.append([w for w in words[number + 1 :] if w != "$resume"])  # an option or nothing
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if shell_commands(page)], ids=name)
def test_every_command_parses(page: Path) -> None:
    """Its name and all of its options exist, and no required argument is absent."""
    for arguments in shell_commands(page):
        known: dict[str, Any] = DATA if arguments[0] == "data" else commands()
        given = arguments[1:] if arguments[0] == "data" else arguments
        assert given[0] in known, f"attractor {shlex.join(arguments)}: no such command"
        message = io.StringIO()
        try:
            with contextlib.redirect_stderr(message), contextlib.redirect_stdout(message):
                tyro.cli(without_effect(known[given[0]]), args=given[1:])
        except SystemExit as error:
            pytest.fail(f"attractor {shlex.join(arguments)}: {error}\n{message.getvalue()}")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_in_sentences_exist(page: Path) -> None:
    """``attractor NAME`` in inline code names a command."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = re.findall(r"`attractor ([a-z-]+)", text)
    assert set(named) <= set(commands()), f"{name(page)}: {set(named) - set(commands())}"
