"""Links, line lengths and entries that the documentation promises."""

import re
from pathlib import Path

import pytest
import torch
from tests.docs.pages import PAGES, ROOT, name

from attractor.solve import Outcome, Status


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_linked_file_exists(page: Path) -> None:
    """As seen from the page, so that links also work in a repository browser; the site builds the pages of notebooks and
    ``play.html``. A site has no view of a folder, so its pages link files.
    """
    exists = Path.exists if page.parent == ROOT else Path.is_file
    for target in re.findall(r"\]\(((?!http)[^)#\s]+)\)", page.read_text()):
        notebook = ROOT / "examples" / "notebooks" / f"{Path(target).stem}.ipynb"
        is_built = target == "play.html" or ("notebooks/" in target and notebook.exists())
        assert is_built or exists(page.parent / target), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_lines_of_prose_are_at_most_120_characters(page: Path) -> None:
    """Except tables, links and commands."""
    text = re.sub(r"^( *)```.*?^\1```$|`[^`\n]+`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in text.splitlines() if len(line) > 120 and not line.lstrip().startswith(("|", "- ["))]
    assert not long


def test_every_sentence_of_an_outcome_has_an_entry_in_troubleshooting() -> None:
    """A reader of ``print(solution.outcome)`` finds its words in a heading."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = [line.removeprefix("### … ") for line in page.splitlines() if line.startswith("### … ")]
    for status in Status:
        if status != Status.CONVERGED:
            outcome = Outcome(status=torch.tensor([status]), residual=torch.ones(1), calls=3, limit=3, checked=True)
            assert any(heading in str(outcome) for heading in headings), str(outcome)
    unchecked = str(
        Outcome(status=torch.tensor([Status.ACTIVE]), residual=torch.ones(1), calls=3, limit=3, checked=False)
    )
    assert any(heading in unchecked for heading in headings), unchecked
    assert "### All equations converged" in page
