"""The tables of docs/scale.md."""

from benchmarks.scale import DOCS, updated


def test_the_tables_are_what_the_code_says_now() -> None:
    """If not: python -m benchmarks.scale --write."""
    assert updated(DOCS.read_text()) == DOCS.read_text()
