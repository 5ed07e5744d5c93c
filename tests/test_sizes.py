"""Files and functions stay small enough to read: 400 lines a file, 60 lines a function without its docstring."""

import ast
from pathlib import Path

import pytest

import attractor

ROOT = Path(attractor.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    """A file of the command line has at most 130 lines, because it only parses, calls and prints."""
    source = path.read_text()
    limit = 130 if path.parent.name == "cli" else 400
    assert len(source.splitlines()) <= limit, f"{path.relative_to(ROOT)} has more than {limit} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert length(node) <= 60, f"{node.name} has {length(node)} lines"


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines without the docstring."""
    assert function.end_lineno is not None
    total = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        assert docstring.end_lineno is not None
        total -= docstring.end_lineno - docstring.lineno + 1
    return total
