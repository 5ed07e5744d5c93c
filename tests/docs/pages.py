"""Read the pages of the documentation and the code blocks in them."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: the words after the fence, the line of its first line, and its text."""

    info: str
    line: int
    text: str


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page; a line ``--8<-- "file"`` is replaced by the file, as the site does."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        body = re.sub(r'--8<-- "(.*?)"', lambda file: (ROOT / file[1]).read_text(), textwrap.dedent(match[3]))
        yield Block(match[2].strip(), text[: match.start(3)].count("\n"), body)
