"""Figures, GIFs and the HTML report. Numbers come from `attractor.evaluation`."""

from attractor.plots.curves import plot_metric
from attractor.plots.internalisation import (
    plot_depth,
    plot_evaluations,
    plot_proposal_distance,
    plot_residual,
    plot_state_paths,
)
from attractor.plots.puzzles import plot_accuracy, plot_trajectory, render_digits, render_grid
from attractor.plots.report import write_report

__all__ = [
    "plot_accuracy",
    "plot_depth",
    "plot_evaluations",
    "plot_metric",
    "plot_proposal_distance",
    "plot_residual",
    "plot_state_paths",
    "plot_trajectory",
    "render_digits",
    "render_grid",
    "write_report",
]
