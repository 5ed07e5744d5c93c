"""What a run tells of itself: ``metrics.jsonl``, a line a report, and ``events.jsonl``, a line for whatever went wrong."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from attractor.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Report:
    """One line of the log.

    ``progress`` in [0, 1]; ``seconds`` since the start of training, over all resumed parts; ``events`` tell of bad steps, drifts
    and rollbacks since the last report, a sentence each.
    """

    step: int
    seconds: float
    progress: float
    lr: float
    metrics: dict[str, float]
    events: tuple[str, ...] = ()


class Callback(Protocol):
    """Something that watches: called every ``log_every`` steps, and once at the end."""

    def __call__(self, report: Report) -> None: ...


@contextmanager
def writing(file: str | Path) -> Iterator[None]:
    """Turn what goes wrong in writing a run's files, as when the disk is full, into a sentence."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror or error}); make room and resume.") from error


class Log:
    """Writes both files and calls the callbacks. Lines after ``step``, where a resumed run goes on, are dropped: they recur."""

    def __init__(self, out: Path, step: int, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self._metrics, self._events = _opened(out / "metrics.jsonl", step), _opened(out / "events.jsonl", step)
        self._told: list[str] = []

    def tell(self, step: int, what: str) -> None:
        """Write that something happened in a step."""
        self._told.append(what)
        _write(self._events, {"step": step, "event": what})

    def report(self, report: Report) -> None:
        """Write figures, and show them with what has been told since the last ones."""
        finite = {k: v if math.isfinite(v) else None for k, v in report.metrics.items()}  # JSON knows no infinity
        line = {"step": report.step, "seconds": round(report.seconds, 3), "lr": report.lr, **finite}
        _write(self._metrics, line)
        for callback in self._callbacks:
            callback(replace(report, events=tuple(self._told)))
        self._told.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._metrics, self._events):
            with suppress(OSError):  # every line is in its file, or its writing has failed already
                file.close()


class NullLog:
    """The log of a rank that leaves talking to another."""

    def tell(self, step: int, what: str) -> None: ...

    def report(self, report: Report) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def _write(file: TextIO, line: dict[str, Any]) -> None:
    with writing(file.name):
        file.write(json.dumps(line) + "\n")


def _opened(file: Path, step: int) -> TextIO:
    """Open a log for appending line by line, without what was written after ``step``."""
    kept = []
    for line in file.read_text().splitlines(keepends=True) if step and file.exists() else []:
        try:
            before = json.loads(line)["step"] <= step
        except json.JSONDecodeError:  # torn when the machine stopped
            continue
        kept += [line] if before else []
    part = file.with_name(f".{file.name}.part")
    with writing(file):
        part.write_text("".join(kept))
        os.replace(part, file)
        return file.open("a", buffering=1)
