"""Stop a run early so that it can be resumed: after some time, or when a signal asks for it."""

import signal
import time
from types import FrameType
from typing import Any, Self

from attractor.errors import ConfigError


class Preemption:
    """Tell a run when to write a checkpoint and stop. As a context manager it also reacts to SIGTERM and SIGINT.

    ``with Preemption(seconds=600) as should_pause: train(..., should_pause=should_pause)``. A second SIGINT interrupts
    at once.

    Parameters
    ----------
    seconds
        Time until the run stops, counted from the first call. A run calls after its first step, so every part of a run
        makes at least one step. None: stop only at a signal.

    Attributes
    ----------
    requested
        What the last call returned.
    """

    def __init__(self, *, seconds: float | None = None) -> None:
        if seconds is not None and not seconds >= 0:
            raise ConfigError(f"Preemption(seconds={seconds:g}): give a number from 0 up.")
        self._seconds = seconds
        self._deadline: float | None = None
        self._signalled = False
        self.requested = False
        self._old_handlers: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Return whether the run should stop now."""
        if self._seconds is not None and self._deadline is None:
            self._deadline = time.monotonic() + self._seconds
        self.requested = self._signalled or (self._deadline is not None and time.monotonic() >= self._deadline)
        return self.requested

    def __enter__(self) -> Self:
        signals = (signal.SIGTERM, signal.SIGINT)
        self._old_handlers = {number: signal.signal(number, self._handle) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True
