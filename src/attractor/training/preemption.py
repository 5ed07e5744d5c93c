"""Leaving a run so that it can go on: after some time, or when the system or the user asks for it."""

import signal
import time
from types import FrameType, TracebackType
from typing import Any, Self

from attractor.errors import ConfigError


class Preemption:
    """Tells a run when to write a checkpoint and leave; ``with Pause(seconds=600) as pause`` listens for SIGTERM and SIGINT too.

    A second SIGINT interrupts at once. ``seconds=None`` waits for signals alone. Time counts from the first question, which a run
    puts after its first step, so that every piece of a run gets on by a step at least.
    """

    def __init__(self, *, seconds: float | None = None) -> None:
        if seconds is not None and not seconds >= 0:
            raise ConfigError(f"a pause after {seconds:g} seconds: give a number from 0 up.")
        self._seconds = seconds
        self._until: float | None = None
        self._asked = False
        self.taken = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Tell whether the run should pause now; ``taken`` remembers that it was told so."""
        if self._seconds is not None and self._until is None:
            self._until = time.monotonic() + self._seconds
        self.taken = self._asked or (self._until is not None and time.monotonic() >= self._until)
        return self.taken

    def __enter__(self) -> Self:
        self._before = {which: signal.signal(which, self._ask) for which in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
