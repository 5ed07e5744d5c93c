"""Draw the metrics of a run as curves: with TensorBoard, or with a tracking service. Each logger is a callback."""

import importlib
import importlib.util
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.files import reported_write_errors
from attractor.training.log import ADVICE, Callback, Report

LOGGERS = ("tensorboard", "wandb", "trackio")  # also the names of their packages
WriteMetrics = Callable[[dict[str, float], int], None]


def make_logger(name: str, out: Path, recipe: str, settings: dict[str, Any]) -> Callback | None:
    """Return the callback for a logger, or None for ``"none"``. TensorBoard writes into ``out/tensorboard``.

    A tracking service groups runs by ``recipe``, names them by their folder ``out``, and stores ``settings`` with them.
    """
    if name == "none":
        return None
    if name not in LOGGERS:
        raise ConfigError(f"there is no logger {name!r}; {suggestion(name, [*LOGGERS, 'none'])}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"the logger {name!r} needs a package: pip install {name}.")
    write: WriteMetrics | None = None

    def callback(report: Report) -> None:
        nonlocal write
        if write is None:  # at the first report, so that a run that cannot start leaves nothing behind
            write = _tensorboard(out) if name == "tensorboard" else _service(name, out, recipe, settings)
        write({"lr": report.lr, "seconds": report.seconds, **report.metrics}, report.step)

    return callback


def _tensorboard(out: Path) -> WriteMetrics:
    """Return a function that appends to an event file. PyTorch's writer does so in a thread, whose errors are printed."""
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
    from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

    file = out / "tensorboard" / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"

    def append(**content: Any) -> None:
        event = Event(wall_time=time.time(), **content).SerializeToString()
        with reported_write_errors(file.parent, ADVICE), file.open("ab") as stream:
            RecordWriter(stream).write(event)

    with reported_write_errors(file.parent, ADVICE):
        file.parent.mkdir(parents=True, exist_ok=True)
    append(file_version="brain.Event:2")

    def write(metrics: dict[str, float], step: int) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        append(step=step, summary=Summary(value=values))

    return write


def _service(package: str, out: Path, recipe: str, settings: dict[str, Any]) -> WriteMetrics:
    service: Any = importlib.import_module(package)
    run = service.init(project=f"attractor-{recipe.replace('/', '-')}", name=out.name, config=settings)
    return lambda metrics, step: run.log(metrics, step=step)
