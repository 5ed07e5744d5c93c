"""Shared style of figures: a colour-blind-safe palette, light grids, and logarithmic axes with few ticks."""

from pathlib import Path
from typing import TYPE_CHECKING

from attractor.errors import requires_extra
from attractor.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito, "Color Universal Design" (2008).
BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#777777"
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", VERMILION)
MARKERS = "os^Dv*"


def new_figure(num_axes: int = 1, height: float = 3.6, *, num_rows: int = 1) -> tuple["Figure", list["Axes"]]:
    """Return a figure with ``num_axes`` axes, row by row. It is not registered with pyplot; no backend is chosen."""
    with requires_extra("plots"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, height), dpi=130, layout="constrained")
    axes = list(figure.subplots(num_rows, num_axes // num_rows, squeeze=False).flat)
    for each in axes:
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
    return figure, axes


def save(figure: "Figure", file: Path) -> None:
    """Write a figure; the file appears when it is complete."""
    with new_file(file) as part:
        figure.savefig(part)


def use_depth_axis(axes: "Axes") -> None:
    """Make the x axis logarithmic, with powers of two written as whole numbers."""
    from matplotlib.ticker import FormatStrFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%d"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("depth (evaluations)")


def use_integer_ticks(axis: "Axis") -> None:
    """Label whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def use_log_scale(axes: "Axes") -> None:
    """Make the y axis logarithmic, with ticks at powers of ten, or at 1, 2 and 5 when the data spans less than a decade."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    if high < 10 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    else:
        axes.yaxis.set_major_locator(LogLocator(numticks=8))
