"""Figures about a language model's solve: loss by depth, residuals, evaluations, proposal distance and trajectories."""

from typing import TYPE_CHECKING

import torch

from attractor.evaluation.internalisation import Internalisation
from attractor.evaluation.trajectories import Trajectories
from attractor.plots.style import BLUE, GREY, ORANGE, VERMILION, new_figure, use_integer_ticks, use_log_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST = 1e-9  # smaller values, such as a residual of zero, are drawn here on logarithmic axes


def equilibrium_name(found: Internalisation) -> str:
    """Return what a figure calls the last of ``found.points``."""
    if found.tolerance is not None:
        return "equilibrium"
    return f"{found.equilibrium.evaluations:g} iterations, as trained"


def plot_depth(found: Internalisation) -> "Figure":
    """Plot bits per byte, and the KL divergence from the equilibrium, against depth."""
    figure, (left, right) = new_figure(2)
    points = {p.depth: p for p in found.points if p.depth is not None}
    depths, name = list(points), equilibrium_name(found)
    left.plot(depths, [p.bits_per_byte for p in points.values()], color=BLUE, marker="o", label="fixed depth")
    reference = found.equilibrium.bits_per_byte
    left.axhline(reference, color=VERMILION, linestyle="--", label=f"{name}: {reference:.4f}")
    left.set(xlabel="depth (evaluations)", ylabel="bits per byte", title="loss")
    left.ticklabel_format(axis="y", useOffset=False)
    left.legend(fontsize=9)
    right.plot(depths, [max(p.kl_divergence, SMALLEST) for p in points.values()], color=BLUE, marker="o")
    right.set(
        xlabel="depth (evaluations)", ylabel="KL divergence (nats per token)", title="divergence from the equilibrium"
    )
    use_log_scale(right)
    for axes in (left, right):
        use_integer_ticks(axes.xaxis)
    return figure


def plot_residual(found: Internalisation, paths: Trajectories) -> "Figure":
    """Plot the median residual and its 10 to 90 % band over tokens against evaluations."""
    figure, (axes,) = new_figure(height=3.8)
    residual = paths.residual.double().clamp_min(SMALLEST)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=residual.dtype)
    low, median, high = torch.nanquantile(residual, levels, dim=1).tolist()
    evaluations = range(len(residual))
    axes.fill_between(evaluations, low, high, color=BLUE, alpha=0.2, linewidth=0, label="10 to 90 % of tokens")
    axes.plot(evaluations, median, color=BLUE, marker="o", markersize=4, label="median")
    if found.tolerance is not None:
        axes.axhline(found.tolerance, color=VERMILION, linestyle="--", label=f"tolerance {found.tolerance:g}")
    axes.set(xlabel="evaluations", ylabel="relative residual")
    use_log_scale(axes)
    use_integer_ticks(axes.xaxis)
    axes.legend(fontsize=9)
    return figure


def plot_evaluations(found: Internalisation) -> "Figure":
    """Plot the distribution of evaluations per token."""
    figure, (axes,) = new_figure(height=3.2)
    counts = torch.cat([t.evaluations for t in found.tokens]).bincount()
    used = range(int(counts.nonzero()[0]), len(counts))
    axes.bar(used, (100 * counts / counts.sum())[used.start :].tolist(), color=BLUE, width=0.9)
    mean = found.equilibrium.evaluations
    axes.axvline(mean, color=VERMILION, linestyle="--", label=f"mean {mean:.2f}")
    axes.set(xlabel="evaluations until convergence", ylabel="share of tokens (%)")
    use_integer_ticks(axes.xaxis)
    axes.legend(fontsize=9)
    return figure


def plot_proposal_distance(found: Internalisation) -> "Figure":
    """Plot the distribution of the distance between proposal and equilibrium; requires ``found.proposal_distance``."""
    figure, (axes,) = new_figure(height=3.2)
    values = torch.cat([t.proposal_distance for t in found.tokens if t.proposal_distance is not None]).double()
    values = values[values.isfinite()]
    # Outliers are counted in the last bar; they would compress all others.
    longest = max(float(values.quantile(0.999)), SMALLEST) if len(values) else 1.0
    share = torch.full_like(values, 100 / max(len(values), 1))
    axes.hist(values.clamp_max(longest).numpy(), bins=48, range=(0, longest), weights=share.numpy(), color=BLUE)
    mean = found.proposal_distance
    assert mean is not None
    axes.axvline(mean, color=VERMILION, linestyle="--", label=f"mean {mean:.3f}")
    axes.set(xlabel="relative distance between proposal and equilibrium", ylabel="share of tokens (%)")
    axes.legend(fontsize=9)
    return figure


def plot_state_paths(paths: Trajectories) -> "Figure":
    """Plot token states on two principal components: absolute, and relative to each token's last state."""
    figure, axes = new_figure(2, height=4.6)
    for each, states, explained, title in (
        (axes[0], paths.paths, paths.explained, "states"),
        (axes[1], paths.offsets, paths.explained_offsets, "states relative to each token's last state"),
    ):
        for token in states.unbind(dim=1):
            each.plot(*token.T.tolist(), color=GREY, linewidth=0.8, marker=".", markersize=3, zorder=1)
        (x, y), (last_x, last_y) = states[0].T.tolist(), states[-1].T.tolist()
        each.scatter(x, y, s=18, facecolor="white", edgecolor=BLUE, zorder=2, label="first state")
        each.scatter(
            last_x, last_y, s=18, color=ORANGE, marker="D", zorder=3, label=f"state after {len(states) - 1} evaluations"
        )
        each.set_title(title, fontsize=10)
        each.set(
            xlabel=f"component 1 ({explained[0]:.0%} of variance)",
            ylabel=f"component 2 ({explained[1]:.0%} of variance)",
        )
    axes[0].legend(fontsize=9)
    return figure
