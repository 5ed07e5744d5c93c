"""Progress bars: one for training, with its metrics, and one per task for other long work.

Bars appear only in a terminal. The percentage, the time left and then the bar are visible in any window; the title is
cut if it is long, and the text behind them ends where the window ends. Until the first report, the bar moves and the
time that has passed is shown. Rich is imported when a bar is created.
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
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class TimeColumn(ProgressColumn):
        """The time left, or the time that has passed while nothing is known about the end."""

        def render(self, task: Task) -> Text:
            is_known = task.total is not None and task.time_remaining is not None
            seconds = int((task.time_remaining if is_known else task.elapsed) or 0)
            clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            return Text(f"{clock} {'left' if is_known else 'so far'}")

    # Widths that fit: the window less bar, percentage, time and spaces. The note takes what the title leaves.
    width = console.width
    title = Column(no_wrap=True, overflow="ellipsis", max_width=max(8, (width - 34) // 2))
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=title),
        BarColumn(bar_width=24 if width >= 120 else 10),
        TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True)),
        TimeColumn(table_column=Column(no_wrap=True)),
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

    The bar is followed by the last value of each metric. If the output is not a terminal, it prints a line after every
    tenth of the run instead, with what was measured since the last line; ``(step 90)`` marks a value of an earlier step.
    """

    def __init__(self, title: str, console: "Console | None" = None, *, enabled: bool = True) -> None:
        super().__init__(console, enabled=enabled, transient=False)
        self._title, self._tenth = printable(title), 0
        self._metrics: dict[str, tuple[float, int]] = {}  # with the step of the measurement
        if self._progress is not None:
            self._task = self._progress.add_task(self._title, total=None, note="starting")

    def __call__(self, report: Any) -> None:
        if self._progress is None:
            return
        for event in report.events:
            self._print(f"step {report.step}: {event}")
        # Metrics that were not measured are NaN and left out, but a loss of NaN must be seen.
        self._metrics |= {
            name: (value, report.step)
            for name, value in report.metrics.items()
            if name != "grad_norm" and (name == "loss" or not math.isnan(value))
        }
        shown = {name: f"{name} {short_number(value)}" for name, (value, _) in self._metrics.items()}
        note = " ".join([f"step {report.step}", *shown.values()])
        self._progress.update(self._task, total=1.0, completed=report.progress, note=note)
        if self._progress.disable and int(report.progress * 10) > self._tenth:
            self._tenth = int(report.progress * 10)
            for name, (_, step) in self._metrics.items():  # those of held-out examples are rarer than reports
                shown[name] += "" if step == report.step else f" (step {step})"
            self._print(
                f"{self._title} {self._tenth * 10}% {report.seconds:.0f}s step {report.step} {' '.join(shown.values())}"
            )
            self._metrics.clear()


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


def short_number(value: float) -> str:
    """Return a number with three significant digits, such as 0.00123, 5.68, 392 or 1,030."""
    if not math.isfinite(value) or 0 < abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:#.3g}".rstrip(".") if abs(value) < 100 else f"{float(f'{value:.3g}'):,.0f}"
