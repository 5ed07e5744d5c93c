"""What a run tells of itself: ``metrics.jsonl``, a line a report, and ``events.jsonl``, a line for whatever went wrong."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO


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


class Log:
    """Writes both files and calls the callbacks. Lines after ``step``, where a resumed run goes on, are dropped: they recur."""

    def __init__(self, out: Path, step: int, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self._metrics, self._events = _opened(out / "metrics.jsonl", step), _opened(out / "events.jsonl", step)
        self._told: list[str] = []

    def tell(self, step: int, what: str) -> None:
        """Write that something happened in a step."""
        self._told.append(what)
        self._events.write(json.dumps({"step": step, "event": what}) + "\n")

    def report(self, report: Report) -> None:
        """Write figures, and show them with what has been told since the last ones."""
        finite = {k: v if math.isfinite(v) else None for k, v in report.metrics.items()}  # JSON knows no infinity
        line = {"step": report.step, "seconds": round(report.seconds, 3), "lr": report.lr, **finite}
        self._metrics.write(json.dumps(line) + "\n")
        for callback in self._callbacks:
            callback(replace(report, events=tuple(self._told)))
        self._told.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        self._events.close()


class Silence:
    """The log of a rank that leaves talking to another."""

    def tell(self, step: int, what: str) -> None: ...

    def report(self, report: Report) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


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
    part.write_text("".join(kept))
    os.replace(part, file)
    return file.open("a", buffering=1)
