"""Progress bars: one for training, with its metrics, and one per task for other long work.

Bars appear only in a terminal. In a window of 80 columns, the bar, the percentage and the time left stay visible, and
the text behind them is cut. Rich is imported when a bar is created.
"""

import math
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from attractor.errors import printable, requires_extra

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Advance = Callable[..., None]  # takes how many items are done, of how many, and a note


class _Bars:
    """A context manager that draws bars on ``console``, by default standard error, unless it is not ``enabled``."""

    def __init__(self, console: "Console | None", *, enabled: bool, transient: bool) -> None:
        self._console, self._progress = console, None
        if enabled:
            with requires_extra("train"):
                from rich.console import Console
            self._console = console or Console(stderr=True)
            self._progress = _make_progress(self._console, transient)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _print(self, line: str) -> None:
        assert self._console is not None
        self._console.print(printable(line), soft_wrap=True, highlight=False, markup=False)


def _make_progress(console: "Console", transient: bool) -> "Progress":
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
        # The only column without a fixed width: it takes the space that is left, and is cut there.
        TextColumn(
            "{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
        console=console,
        transient=transient,
        expand=True,
        disable=not console.is_terminal,
    )


class TrainingProgress(_Bars):
    """A :class:`attractor.training.Callback` and context manager that draws a bar, followed by the metrics.

    If the output is not a terminal, it prints a line after every tenth of the run instead.
    """

    def __init__(self, title: str, console: "Console | None" = None, *, enabled: bool = True) -> None:
        super().__init__(console, enabled=enabled, transient=False)
        self._title, self._tenth = printable(title), 0
        self._metrics: dict[str, float] = {}
        if self._progress is not None:
            self._task = self._progress.add_task(self._title, total=1.0, note="")

    def __call__(self, report: Any) -> None:
        if self._progress is None:
            return
        for event in report.events:
            self._print(f"step {report.step}: {event}")
        # Metrics that were not measured are NaN and left out, but a loss of NaN must be seen.
        # Those of held-out examples are measured rarely, so the last ones stay.
        self._metrics |= {
            k: v for k, v in report.metrics.items() if k != "grad_norm" and (k == "loss" or not math.isnan(v))
        }
        note = " ".join([f"step {report.step}", *(f"{name} {_short(value)}" for name, value in self._metrics.items())])
        self._progress.update(self._task, completed=report.progress, note=note)
        if self._progress.disable and int(report.progress * 10) > self._tenth:
            self._tenth = int(report.progress * 10)
            self._print(f"{self._title} {self._tenth * 10}% {report.seconds:.0f}s {note}")


class TaskProgress(_Bars):
    """A context manager with one bar per task. With ``lines``, it prints every tenth of a task if there is no terminal."""

    def __init__(self, *, enabled: bool = True, lines: bool = False, console: "Console | None" = None) -> None:
        super().__init__(console, enabled=enabled, transient=True)
        self._lines = lines

    def follow(self, title: str) -> Advance:
        """Return a function ``(done, total, note="")`` that updates the bar with this title."""
        progress, title = self._progress, printable(title)
        if progress is None:
            return lambda done, total, note="": None
        found = [task.id for task in progress.tasks if task.description == title]
        task, tenth = found[0] if found else progress.add_task(title, total=None, note=""), 0

        def update(done: int, total: int | None, note: str = "") -> None:
            nonlocal tenth
            progress.update(
                task, completed=done, total=total, note=printable(note) or (f"{done:,}/{total:,}" if total else "")
            )
            if self._lines and progress.disable and total and done * 10 // total > tenth:
                tenth = done * 10 // total
                self._print(f"{title} {tenth * 10}% {note}")

        return update

    def count(self, title: str, total: int) -> Callable[[int], None]:
        """Return a function that adds a number of finished items to the bar with this title."""
        update, done = self.follow(title), 0

        def add(num: int) -> None:
            nonlocal done
            done += num
            update(done, total)

        return add


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"
