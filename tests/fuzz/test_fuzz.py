"""A fast part of the generated cases: ``python -m tests.fuzz`` tries all of them."""

from pathlib import Path

import pytest
from tests.fuzz.case import Case, run
from tests.fuzz.suite import make_case, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "work"  # some cases write to ".."
    folder.mkdir()
    make_folder(folder)
    return folder


def test_generated_bad_input_ends_well(folder: Path, monkeypatch) -> None:
    """No traceback, no hang, no half-written file, no changed input, no damage that is accepted."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wrong = {}
    for number in range(120):
        case = make_case(1, number)
        if (found := run(case, folder)) is not None:
            wrong[number, str(case.arguments)] = found
    assert not wrong


def test_a_case_that_ends_badly_is_found(folder: Path) -> None:
    """An input that changes, a file that is left, damage that is accepted."""
    copied = Case(["data", "verify", "tokens"], lambda folder: None, must_fail=True)
    assert "accepts" in str(run(copied, folder))
    left = Case(["evaluate", "maze", "--depths", "1", "--limit", "0", "--data", "puzzles"])
    assert run(left, folder) is None
    calibrate = ["calibrate", "language", "--data", "text", "--limit", "1", "--characters", "30"]
    assert "changes ['language/" in str(run(Case(calibrate), folder))
