"""An HTML report about a language model's proposal and equilibrium: one file without external resources, and PNG figures."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attractor.errors import requires_extra
from attractor.evaluation.internalisation import Internalisation, TokenStats
from attractor.evaluation.trajectories import Trajectories
from attractor.plots.internalisation import (
    equilibrium_name,
    plot_depth,
    plot_evaluations,
    plot_proposal_distance,
    plot_residual,
    plot_state_paths,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND_STEPS = 8


def write_report(
    folder: Path,
    found: Internalisation,
    paths: Trajectories,
    passages: Sequence[tuple[Sequence[str], TokenStats]],
    about: Mapping[str, str],
) -> None:
    """Write ``index.html`` and the figures as PNG into an existing folder.

    Parameters
    ----------
    found, paths
        Measurements of :func:`attractor.evaluation.measure_internalisation` and :func:`attractor.evaluation.trajectories`.
    passages
        Passages to show: the text of their tokens, and the same number of token statistics.
    about
        Rows of the section on how the page was made, such as the command and the checkpoint.
    """
    figures: dict[str, Figure] = {
        "depth": plot_depth(found),
        "residual": plot_residual(found, paths),
        "trajectories": plot_state_paths(paths),
    }
    if found.tolerance is not None:
        figures["evaluations"] = plot_evaluations(found)
    if found.proposal_distance is not None:
        figures["distance"] = plot_proposal_distance(found)
    images = {}
    for name, figure in figures.items():
        file = folder / f"{name}.png"
        figure.savefig(file)
        images[name] = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    (folder / "index.html").write_text(_render(found, paths, passages, about, images), encoding="utf-8")


def _render(
    found: Internalisation,
    paths: Trajectories,
    passages: Sequence[tuple[Sequence[str], TokenStats]],
    about: Mapping[str, str],
    images: Mapping[str, str],
) -> str:
    with requires_extra("plots"):
        from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("attractor.plots"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quantity"] = _quantity
    # Each passage as rows of text, evaluations and residual; an empty text is the rest of a character of several tokens.
    rows = [
        [row for row in zip(texts, stats.evaluations.tolist(), stats.residual.tolist(), strict=True) if row[0]]
        for texts, stats in passages
    ]
    counts = [evaluations for passage in rows for _, evaluations, _ in passage] or [0]
    low, high = min(counts), max(counts)
    steps = min(LEGEND_STEPS - 1, high - low)
    return environment.get_template("report.html.j2").render(
        found=found,
        paths=paths,
        passages=rows,
        about=about,
        images=images,
        equilibrium=equilibrium_name(found),
        by_depth={point.depth: point for point in found.points},
        opacity=lambda evaluations: f"{0.6 * (evaluations - low) / max(high - low, 1):.3f}",
        legend=[low + round(i * (high - low) / max(steps, 1)) for i in range(steps + 1)],
    )


def _quantity(value: float) -> str:
    """Format a number of operations with a unit prefix."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.1f} {prefix}"
    return f"{value / 1e3:.1f} k"
