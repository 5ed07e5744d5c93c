"""Progress bars that appear only if they are asked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int], None]  # takes how many items are done, and of how many


@contextmanager
def progress_bars(is_shown: bool) -> Iterator[Callable[[str], Advance]]:
    """Yield a function that takes a title and returns what updates the bar with that title, or does nothing."""
    if not is_shown:
        yield lambda title: lambda done, total: None
        return
    from attractor.progress import TaskProgress

    with TaskProgress() as bars:
        yield bars.follow
