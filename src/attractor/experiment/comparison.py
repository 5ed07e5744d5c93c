"""Compare runs: the settings that differ, their last metrics, and their curves."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attractor.errors import CheckpointError, ConfigError
from attractor.files import require_output_file
from attractor.training import find_checkpoint, read_run


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; every list has one entry per run.

    Attributes
    ----------
    runs
        The folders.
    settings
        The settings that differ, by path. None where a run has no such setting.
    final
        The last metrics of each run, by name. None where a run has no such metric.
    logs
        All lines of each ``metrics.jsonl``.
    """

    runs: list[Path]
    settings: dict[str, list[Any]]
    final: dict[str, list[float | None]]
    logs: list[list[dict[str, float]]]


def compare(runs: Sequence[str | Path], *, plot: str | Path | None = None, metric: str = "loss") -> Comparison:
    """Compare the settings and the last metrics of runs, and draw the curves of one metric.

    Parameters
    ----------
    runs
        The folders of at least two runs.
    plot
        A file for the picture of the curves: .png, .pdf or .svg.
    metric
        The metric to draw.

    Raises
    ------
    ConfigError, CheckpointError
        If a folder holds no run, no run has the metric, or the picture cannot be written.
    """
    folders = [Path(run) for run in runs]
    if len(folders) < 2:
        raise ConfigError("there is nothing to compare; give the folders of at least two runs.")
    if plot is not None:
        require_output_file(Path(plot))
        if Path(plot).suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ConfigError(f"{plot}: is no name of a picture; give one that ends in .png, .pdf or .svg.")
    flat = [_flatten(read_run(find_checkpoint(folder)).get("recipe", {})) for folder in folders]
    logs = [_read_log(folder / "metrics.jsonl") for folder in folders]
    paths = dict.fromkeys(path for settings in flat for path in settings)
    settings = {path: [each.get(path) for each in flat] for path in paths}
    names = dict.fromkeys(name for log in logs for name in log[-1])
    found = Comparison(
        folders,
        {path: values for path, values in settings.items() if any(value != values[0] for value in values)},
        {name: [log[-1].get(name) for log in logs] for name in names},
        logs,
    )
    if plot is not None:
        from attractor.plots import plot_metric

        if metric not in names:
            raise ConfigError(f"no run has the metric {metric!r}; choose one of {', '.join(names)}.")
        plot_metric({str(folder): log for folder, log in zip(folders, logs, strict=True)}, metric, Path(plot))
    return found


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _read_log(file: Path) -> list[dict[str, float]]:
    """Return the lines of a log. A line that a crash has cut off is left out."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            lines.append({name: value for name, value in json.loads(line).items() if value is not None})
        except (ValueError, AttributeError, RecursionError):
            continue
    if not lines:
        raise CheckpointError(f"{file}: holds no metrics; give the folder of a run that attractor train has written.")
    return lines
