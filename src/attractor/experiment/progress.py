"""Progress bars that appear only if they are asked for."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attractor.training import Callback

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


def training_bar(title: str, is_shown: bool) -> "AbstractContextManager[Callback | None]":
    """Return a progress bar for training, which is also a callback, or a context without one."""
    if not is_shown:
        return nullcontext()
    from attractor.progress import TrainingProgress

    bar: Any = TrainingProgress(title)
    return bar
