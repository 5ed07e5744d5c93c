"""Progress bars of long work, one a task."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Bars(Bar):
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
