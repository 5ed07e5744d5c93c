"""Progress bars: one for training, with its metrics, and one per task for other long work."""

import math
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class TrainingProgress:
    """A :class:`attractor.training.Callback` and context manager that draws a bar with the metrics behind it.

    Where the output is no terminal, a plain line is printed at every tenth of the run instead.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._title, self._tenth = title, 0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=1.0, line="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, report: Any) -> None:
        for event in report.events:
            self._console.print(f"step {report.step}: {event}", soft_wrap=True)
        # What was not measured is left out; a loss that is not a number is worth seeing.
        known = {k: v for k, v in report.metrics.items() if k != "grad_norm" and (k == "loss" or not math.isnan(v))}
        shown = " ".join(f"{name} {_short(value)}" for name, value in known.items())
        line = f"step {report.step} {shown}"
        self._bar.update(self._task, completed=report.progress, line=line)
        if not self._console.is_terminal and int(report.progress * 10) > self._tenth:
            self._tenth = int(report.progress * 10)
            self._console.print(f"{self._title} {self._tenth * 10}% {report.seconds:.0f}s {line}", soft_wrap=True)


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"


class TaskProgress(Bar):
    """One bar a task, drawn where the output is a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def follow(self, title: str) -> Callable[[int, int], None]:
        """Return what keeps the bar of that title up to date."""
        found = [task.id for task in self.tasks if task.description == title]
        which = found[0] if found else self.add_task(title, total=None)
        return lambda done, total: self.update(which, completed=done, total=total)
