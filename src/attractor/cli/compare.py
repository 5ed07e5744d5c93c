"""``attractor compare``: runs side by side."""

import json
from pathlib import Path
from typing import Annotated

import tyro

from attractor.cli.output import add_row, make_table, say, show
from attractor.progress import short_number


def compare(
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN ...")],
    /,
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    metric: str = "loss",
) -> None:
    """Compare runs: the settings that differ, their last metrics, and their curves.

    Args:
        runs: Folders that attractor train has written.
        plot: A file for a picture of the curves of one metric: .png, .pdf or .svg.
        metric: The metric to draw, such as loss or evaluations.
    """
    from attractor.experiment.comparison import compare as run

    found = run(runs, plot=plot, metric=metric)
    table = make_table(("", *(str(folder) for folder in found.runs)), simple=True)
    for path, values in found.settings.items():
        add_row(table, path, *(json.dumps(value) for value in values))
    table.add_section()
    for name, figures in found.final.items():
        shown = (f"{f:,}" if isinstance(f, int) else short_number(f) for f in figures if f is not None)
        add_row(table, name, *("–" if figure is None else next(shown) for figure in figures))
    show(table)
    say("Settings that differ, then the last metrics." if found.settings else "Their settings are equal.")
    if plot is not None:
        say(f"Curves of {metric}: {plot}")
