"""Every Python block of the README and the documentation runs."""

import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from tests.docs.pages import PAGES, blocks, name

# Assignments at the start of a line that a test makes smaller.
SMALL = {"num_steps": "2", "num_puzzles": "16", "num_test": "8", "vocab_size": "300"}
OTHER_LIBRARIES = "{.python .notest}"  # allowed on one page, for code of other libraries: compiled, not run


def shrink(code: str) -> str:
    """Replace the values of ``SMALL``, also in assignments of several names."""

    def replace(match: re.Match[str]) -> str:
        names = [part.strip() for part in match[1].split(",")]
        values = [part.strip() for part in match[2].split(",")]
        return f"{match[1]} = {', '.join(SMALL.get(n, v) for n, v in zip(names, values, strict=True))}"

    return re.sub(r"^([a-z_, ]+) = ([\d, ]+)$", replace, code, flags=re.MULTILINE)


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.info == "python" for b in blocks(p))], ids=name)
def test_the_python_blocks_of_a_page_run_in_order(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one session, without an error or a warning of this package."""
    monkeypatch.chdir(workspace)
    torch.manual_seed(0)
    module = types.ModuleType("page")  # dataclasses look their module up by name
    monkeypatch.setitem(sys.modules, "page", module)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for block in blocks(page):
            if block.info == "python":
                code = "\n" * block.line + shrink(block.text)  # a traceback has the line of the page
                exec(compile(code, str(page), "exec"), module.__dict__)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_of_other_libraries_compiles(page: Path) -> None:
    """And stands on one page only."""
    for block in blocks(page):
        if "python" in block.info and block.info != "python":
            assert (name(page), block.info) == ("docs/coming_from.md", OTHER_LIBRARIES)
            compile(block.text, str(page), "exec")
