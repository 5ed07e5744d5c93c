"""Every example runs in seconds, and is short."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
ARGUMENTS = {"kepler": [], "custom_solver": [], "puzzle": ["--num-steps", "3", "--num-puzzles", "64"]}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_runs(script: Path, tmp_path: Path) -> None:
    """With few steps, from any folder."""
    arguments = ARGUMENTS.get(script.stem, ["--num-steps", "3"])
    run = subprocess.run([sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_fits_a_screen(script: Path) -> None:
    """At most 80 lines."""
    assert len(script.read_text().splitlines()) <= 80
