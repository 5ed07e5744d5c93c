"""The project uses the field's words: words of its earlier private vocabulary do not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GONE = {
    "converge": r"\b(at|to) rest\b|\brests\b|\bunrest\b|\bcomes? to rest\b",
    "converge, freeze": r"(?i)(?<!un)\bsettl(e|ed|es|ing)\b(?! for\b)",
    "lowest residual": r"(?i)\bcalm(er|est|ly)?\b",
    "backward pass": r"\bon the way back\b",
    "synchronized": r"\btogether\(|\bis_together\b|together\.py",
    "minimal": r"\bno clue to spare\b",
    "convergence check": r"\bhost looks\b|\bhost look\b|\blooks? at the (residuals?|device)\b",
    "needs evaluation": r"\bis due\b|\bare due\b|\bdue\b(?= (equations|tokens))",
    "tracker": r"\b_?Ledger\b|\bledger\b",
    "reactivated": r"\bwoken\b",
    "layer, package": r"(?i)\bhouse rules\b|\brooms?\b(?= (which|that|may|on|from))|\bshop window\b|\blower floors?\b",
    "estimate": r"(?i)\breckon(s|ed|ing)?\b",
    "evaluate": r"(?i)\bjudge[sd]?\b|\bjudging\b|\bjudgement\b",
    "repaired": r"\bmended?\b|\bmending\b",
    "target, draft": r"\bwished\b",
    "dfs": r"\bwinding\b",
    "plain grammar": r"(?i)\bwhoever\b|\bnobody\b|\bborne\b|\bof those that\b|\bsaid of\b|\bt(ells|old) of\b|\bamid\b",
    "old names": r"\bvisible\(|\bClosing\b|\bCellsConfig\b|\bSwiGLUAcross\b|\bRecursionConfig\b|\bBest\(",
}
FILES = sorted(
    path
    for pattern in ("src/**/*.py", "tests/**/*.py", "benchmarks/*.py", "examples/*", "docs/**/*.md", "*.md", "Makefile")
    for path in ROOT.glob(pattern)
    if path != Path(__file__) and path.is_file()
)


@pytest.mark.parametrize("word", GONE)
def test_a_word_that_is_gone_stays_gone(word: str) -> None:
    """In source, tests, benchmarks, examples and documentation."""
    pattern = re.compile(GONE[word])
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r}"
        for path in FILES
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if (match := pattern.search(line))
    ]
    assert not found, f"say {word}:\n" + "\n".join(found)
