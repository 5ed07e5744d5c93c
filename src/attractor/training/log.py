"""The log of a run: ``metrics.jsonl`` with one line per report, and ``events.jsonl`` with one line per problem."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from attractor.errors import ConfigError
from attractor.files import json_safe, reported_write_errors, require_regular, write_bytes

ADVICE = "check the disk and resume"


@dataclass(frozen=True, kw_only=True)
class Report:
    """The metrics of a run at one step.

    Attributes
    ----------
    seconds
        Training time, over all parts of a resumed run.
    progress
        Fraction of the run that is done, in [0, 1].
    metrics
        By name: ``loss``, ``grad_norm``, and those of the objective.
    events
        Bad steps, drifts and rollbacks since the last report, one sentence each.
    """

    step: int
    seconds: float
    progress: float
    lr: float
    metrics: dict[str, float]
    events: tuple[str, ...] = ()


class Callback(Protocol):
    """A function that receives a :class:`Report` every ``log_every`` steps and at the end of the run."""

    def __call__(self, report: Report) -> None: ...


class Log:
    """Write both files and call the callbacks. Lines after ``step``, where a resumed run starts, are removed."""

    def __init__(self, out: Path, step: int, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self._new_events: list[str] = []
        metrics, events = out / "metrics.jsonl", out / "events.jsonl"
        for file in (metrics, events):  # before the first is changed
            require_regular(file, ConfigError)
        self._metrics, damaged_metrics = _open_log(metrics, step)
        self._events, damaged_events = _open_log(events, step)
        for name, number in (("metrics", damaged_metrics), ("events", damaged_events)):
            if number:
                self.event(step, f"damaged lines of {name}.jsonl: {number}; they moved to {name}.damaged.jsonl")

    def event(self, step: int, message: str) -> None:
        """Write what happened in a step."""
        self._new_events.append(message)
        _write_line(self._events, {"step": step, "event": message})

    def report(self, report: Report) -> None:
        """Write metrics, and call the callbacks with them and the events since the last report."""
        line = {"step": report.step, "seconds": round(report.seconds, 3), "lr": report.lr, **report.metrics}
        _write_line(self._metrics, line)
        for callback in self._callbacks:
            callback(replace(report, events=tuple(self._new_events)))
        self._new_events.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._metrics, self._events):
            with suppress(OSError):  # lines are flushed one by one: an error here was raised by a write before
                file.close()


class NullLog:
    """The log of all ranks but the main one: it writes nothing."""

    def event(self, step: int, message: str) -> None: ...

    def report(self, report: Report) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


def _write_line(file: TextIO, line: dict[str, Any]) -> None:
    with reported_write_errors(file.name, ADVICE):
        file.write(json.dumps(json_safe(line)) + "\n")


def _open_log(file: Path, step: int) -> tuple[TextIO, int]:
    """Open a log for appending, flushed at every line, after removing the lines after ``step``.

    Damaged lines move to a file of their own; their number is returned too.
    """
    kept, damaged = [], []
    with reported_write_errors(file, ADVICE):
        for line in file.read_bytes().splitlines(keepends=True) if step and file.is_file() else []:
            try:
                line_step = json.loads(line)["step"]
                if type(line_step) is not int:
                    raise TypeError
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged += [line] if line.endswith(b"\n") else []  # a crash cuts off the last line
                continue
            kept += [line.rstrip() + b"\n"] if line_step <= step else []
        if damaged:
            with file.with_suffix(".damaged.jsonl").open("ab") as aside:
                aside.writelines(damaged)
        write_bytes(file, b"".join(kept))
        return file.open("a", buffering=1, encoding="utf-8"), len(damaged)
