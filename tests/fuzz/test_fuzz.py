"""A fast part of the generated cases: ``python -m tests.fuzz`` tries all of them."""

from pathlib import Path

from tests.fuzz.cases import generate, make_folder, run


def test_generated_bad_input_ends_well(tmp_path: Path) -> None:
    """No traceback, no hang, no half-written file."""
    make_folder(tmp_path)
    wrong = {str(case.arguments): found for case in generate(60, seed=1) if (found := run(case, tmp_path)) is not None}
    assert not wrong
