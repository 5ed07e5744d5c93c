"""Where the log is drawn as curves: TensorBoard, or a tracking service whose library is installed. All are callbacks."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.training.log import Callback, Report, writing

Log = Callable[[dict[str, float], int], None]
LIBRARIES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


def make_logger(name: str, out: Path, recipe: str, settings: dict[str, Any]) -> Callback | None:
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
    if name == "none":
        return None
    if name not in LIBRARIES:
        raise ConfigError(f"there is no tracker {name!r}; {suggestion(name, [*LIBRARIES, 'none'])}")
    if importlib.util.find_spec(LIBRARIES[name]) is None:
        raise ConfigError(f"the tracker {name!r} needs its library: pip install {LIBRARIES[name]}.")
    log: Log | None = None

    def callback(report: Report) -> None:
        nonlocal log
        if log is None:  # only now: a run that is refused leaves no trace
            log = _tensorboard(out) if name == "tensorboard" else _service(name, out, recipe, settings)
        log({"lr": report.lr, "seconds": report.seconds, **report.metrics}, report.step)

    return callback


def _tensorboard(out: Path) -> Log:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and not every run wants it

    with writing(out / "tensorboard"):
        writer: Any = SummaryWriter(str(out / "tensorboard"))

    def log(values: dict[str, float], step: int) -> None:
        with writing(out / "tensorboard"):
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

    return log


def _service(library: str, out: Path, recipe: str, settings: dict[str, Any]) -> Log:
    service: Any = importlib.import_module(library)
    run = service.init(project=f"attractor-{recipe.replace('/', '-')}", name=out.name, config=settings)
    return lambda values, step: run.log(values, step=step)
