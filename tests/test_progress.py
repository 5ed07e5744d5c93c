"""Progress bars: what matters stays visible in 80 columns, and no bar is drawn outside a terminal."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from attractor.progress import TaskProgress, TrainingProgress
from attractor.training.log import Report

METRICS = {"loss": 1.2345, "evaluations": 7.0, "residual": 1e-3, "memory": 3.2, "exact": float("nan"), "rate": 123456.0}


def report(step: int, progress: float) -> Report:
    return Report(step=step, seconds=10.0, progress=progress, lr=0.1, metrics=METRICS, events=("a step was skipped",))


def shown_lines(text: str) -> list[str]:
    """The lines without control sequences."""
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize("width", [50, 80, 200])
def test_bar_percentage_and_time_left_are_never_cut(width: int) -> None:
    """Metrics come last, and are cut where the window ends."""
    file = io.StringIO()
    with TrainingProgress("training language/tiny", Console(file=file, force_terminal=True, width=width)) as bar:
        bar(report(100, 0.5))
    last = shown_lines(file.getvalue())[-1]
    assert "training language/tiny" in last
    assert "━━" in last
    assert " 50% " in last
    assert "-:--:--" in last or "0:00:" in last
    assert len(last) <= width
    assert ("rate 123,456" in last) == (width == 200)
    assert "a step was skipped" in file.getvalue()


def test_a_line_every_tenth_without_a_terminal() -> None:
    """Training prints its metrics. Tasks print lines only if they are asked to."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=False)
    with TrainingProgress("training", console) as bar:
        for step in range(1, 101):
            bar(report(step, step / 100))
    assert sum(line.startswith("training ") for line in file.getvalue().splitlines()) == 10
    for lines, expected in ((False, 0), (True, 10)):
        file.truncate(0)
        with TaskProgress(lines=lines, console=console) as bars:
            update = bars.follow("reading")
            for done in range(101):
                update(done, 100, f"{done} MB")
        assert file.getvalue().count("reading") == expected


def test_importing_progress_does_not_import_rich() -> None:
    """The bars are imported when the first one is drawn. A bar that is switched off does nothing."""
    code = """
import sys
from attractor.progress import TaskProgress, TrainingProgress
with TaskProgress(enabled=False) as bars, TrainingProgress("training", enabled=False) as training:
    bars.follow("reading")(1, 2, "note")
    bars.count("reading", 2)(1)
    training(None)
sys.exit("rich" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_titles_and_notes_are_not_markup() -> None:
    """Names of recipes, tasks and files appear as they are."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=200)
    with TaskProgress(console=console) as bars:
        bars.follow("reading [/x]")(1, 2, "[bold]a.txt[/y]")
        bars.count("items", 4)(3)
    assert "reading [/x]" in file.getvalue()
    assert "[bold]a.txt[/y]" in file.getvalue()
    assert "3/4" in file.getvalue()
