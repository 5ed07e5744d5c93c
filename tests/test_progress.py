"""Progress bars: what matters stays visible in 80 columns, and no bar is drawn outside a terminal."""

import io
import math
import re
import subprocess
import sys
import time

import pytest
from rich.console import Console

from attractor.progress import TaskProgress, TrainingProgress, short_number
from attractor.training.log import Report

METRICS = {"loss": 1.2345, "evaluations": 7.0, "residual": 1e-3, "memory": 3.2, "exact": float("nan"), "rate": 123456.0}


def report(step: int, progress: float) -> Report:
    return Report(step=step, seconds=10.0, progress=progress, lr=0.1, metrics=METRICS, events=("a step was skipped",))


def shown_lines(text: str) -> list[str]:
    """The lines without control sequences."""
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").split("\n")
    return [line for line in lines if line.strip()]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_percentage_time_left_and_bar_are_never_cut(width: int) -> None:
    """The title is shortened and metrics are cut where the window ends, at every step of a run."""
    file = io.StringIO()
    with TrainingProgress("training language/tiny", Console(file=file, force_terminal=True, width=width)) as bar:
        first = shown_lines(file.getvalue())[-1]
        bar(report(100, 0.5))
        time.sleep(0.02)
        bar(report(101, 0.6))
    last = shown_lines(file.getvalue())[-1]
    assert re.search(r"0:00:\d\d so far", first), "before the first report, the time that has passed"
    assert last.startswith("train")
    assert "━━" in last
    assert re.search(r" 60% 0:00:\d\d left ", last)
    assert len(last) <= width
    assert ("loss 1.23" in last) == (width >= 80)
    assert ("rate 123,000" in last) == (width == 200)
    assert "a step was skipped" in file.getvalue()


def test_numbers_have_three_significant_digits() -> None:
    """Rates, losses and residuals alike."""
    shown = [short_number(x) for x in (1030.4, 392.474, 123456.0, 5.678, 0.0123, 1.2e-5, 999.6, 7.0, math.inf)]
    assert shown == ["1,030", "392", "123,000", "5.68", "0.0123", "1.20e-05", "1,000", "7.00", "inf"]


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


def test_a_line_has_no_value_that_was_measured_before_the_last_line() -> None:
    """Metrics of held-out examples come with few reports: each value is printed once, with its step."""
    file = io.StringIO()
    with TrainingProgress("training", Console(file=file, force_terminal=False)) as bar:
        for step in range(1, 101):
            rare = {20: {"held_out": 0.25}, 45: {"held_out": 0.5}}.get(step, {})
            bar(Report(step=step, seconds=1.0, progress=step / 100, lr=0.1, metrics={"loss": 1.0, **rare}))
    lines = [line for line in file.getvalue().splitlines() if line.startswith("training ")]
    assert [line.partition("%")[0] for line in lines if "held_out" in line] == ["training 20", "training 50"]
    assert lines[1].endswith("step 20 loss 1.00 held_out 0.250")
    assert lines[4].endswith("step 50 loss 1.00 held_out 0.500 (step 45)")
    assert all(line.endswith("loss 1.00") for line in lines if "held_out" not in line)


def test_the_bar_keeps_values_that_are_measured_rarely() -> None:
    """It is redrawn with every report, so that they could not be read otherwise."""
    file = io.StringIO()
    with TrainingProgress("training", Console(file=file, force_terminal=True, width=200)) as bar:
        for step in (1, 2):
            rare = {"held_out": 0.25} if step == 1 else {}
            bar(Report(step=step, seconds=1.0, progress=step / 4, lr=0.1, metrics={"loss": 1.0, **rare}))
    assert "step 2 loss 1.00 held_out 0.250" in shown_lines(file.getvalue())[-1]


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
