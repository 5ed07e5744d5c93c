"""Where the log is drawn as curves: TensorBoard, or a tracking service whose library is installed. All are callbacks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.train.loop import Callback, Report

Log = Callable[[dict[str, float], int], None]


def tracker(name: str, out: Path, recipe: str, settings: dict[str, Any]) -> Callback | None:
    """Return the callback of that name, or None for ``"none"``.

    Parameters
    ----------
    name
        ``tensorboard`` (writes ``out/tensorboard``), ``wandb`` or ``trackio``; or ``none``.
    out
        The run's folder, whose name is the run's.
    recipe
        Groups runs in a service.
    settings
        Plain data to store with the run.
    """
    known: dict[str, Callable[[Path, str, dict[str, Any]], Log]] = {
        "tensorboard": _tensorboard,
        "wandb": lambda *run: _service("wandb", *run),
        "trackio": lambda *run: _service("trackio", *run),
    }
    if name == "none":
        return None
    if name not in known:
        raise ConfigError(f"there is no tracker {name!r}; {suggestion(name, [*known, 'none'])}")
    try:
        log = known[name](out, recipe, settings)
    except ImportError as error:
        raise ConfigError(f"the tracker {name!r} needs its library: pip install {name} ({error}).") from error

    def callback(report: Report) -> None:
        log({"lr": report.lr, "seconds": report.seconds, **report.metrics}, report.step)

    return callback


def _tensorboard(out: Path, recipe: str, settings: dict[str, Any]) -> Log:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every run wants it

    writer: Any = SummaryWriter(str(out / "tensorboard"))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _service(library: str, out: Path, recipe: str, settings: dict[str, Any]) -> Log:
    import importlib

    service: Any = importlib.import_module(library)
    run = service.init(project=f"attractor-{recipe.replace('/', '-')}", name=out.name, config=settings)
    return lambda values, step: run.log(values, step=step)
