"""Curves of runs: one metric by training step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from attractor.files import new_file
from attractor.plots.style import new_figure


def plot_metric(logs: Mapping[str, Sequence[Mapping[str, float]]], metric: str, file: Path) -> None:
    """Draw a metric of several runs by step. ``logs`` has the lines of each run's ``metrics.jsonl``, by the run's name."""
    figure, [axes] = new_figure(1, height=4.2)
    for number, (name, log) in enumerate(logs.items()):
        points = [(line["step"], line[metric]) for line in log if metric in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linestyle=("-", "--", ":", "-.")[number % 4])
    axes.set_xlabel("training step")
    axes.set_ylabel(metric.replace("_", " "))
    axes.legend()
    with new_file(file) as part:
        figure.savefig(part)
