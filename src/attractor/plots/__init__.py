"""Figures, GIFs and the HTML report. Numbers come from `attractor.evaluation`."""

from attractor.plots.puzzles import plot_accuracy, plot_trajectory, render_digits, render_grid

__all__ = ["plot_accuracy", "plot_trajectory", "render_digits", "render_grid"]
