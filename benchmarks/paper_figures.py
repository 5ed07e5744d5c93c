"""The figures of ``benchmarks/paper.py``, drawn from its runs."""

from pathlib import Path
from typing import Any

import numpy as np

from attractor.plots.style import COLOURS, MARKERS, new_figure, save, use_log_scale
from benchmarks.paper_items import LABELS

Runs = dict[str, list[dict[str, Any]]]


def draw(name: str, runs: Runs, file: Path) -> None:
    """Draw one figure."""
    figure, axes = new_figure({"figure2": 2, "figure3": 2, "figure6": 3}.get(name, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    globals()[f"_{name}"](axes, runs)
    for each in axes:
        if each.get_legend_handles_labels()[0]:
            each.legend(fontsize=8)
    save(figure, file)


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 4}


def _sizes(axes: Any, runs: Runs, column: str, factor: float, ending: str) -> None:
    """Draw a column against weights: the two widths of a family are one line."""
    families = list(dict.fromkeys(side.removesuffix(ending) for side in runs))
    for number, family in enumerate(families):
        found = [runs[side] for side in (family, family + ending) if side in runs]
        points = sorted((r[0]["weights"] / 1e6, [factor * run[column] for run in r if column in run]) for r in found)
        points = [(weights, values) for weights, values in points if values]
        mean = [float(np.mean(values)) for _, values in points]
        spread = [(max(values) - min(values)) / 2 for _, values in points]
        label = LABELS.get(family, LABELS.get(family + ending, family)).split(",")[0].split(" (")[0]
        axes.errorbar([w for w, _ in points], mean, spread, capsize=3, label=label, **_style(number))
    axes.set(xlabel="weights (millions)")


def _figure1(axes: Any, runs: Runs) -> None:
    _sizes(axes[0], runs, "ppl", 1, "-half")
    axes[0].set(ylabel="perplexity of held-out text")


def _figure2(axes: Any, runs: Runs) -> None:
    for each, task in zip(axes, ("sudoku", "maze"), strict=True):
        _sizes(each, runs, task, 100, "-wide")
        each.set(ylabel=f"{task}: right in every cell (%)", ylim=(-4, 104))


def _figure3(axes: Any, runs: Runs) -> None:
    for number, (side, found) in enumerate(runs.items()):
        for run in found:
            label = LABELS[side].split(" (")[0] if run is found[0] else None
            loss = [line["loss"] for line in run["curve"]]
            settings = {"color": COLOURS[number], "alpha": 0.8, "label": label}
            axes[0].plot([line["step"] for line in run["curve"]], loss, **settings)
            axes[1].plot([line["flops"] / 1e12 for line in run["curve"]], loss, **settings)
    axes[0].set(xlabel="step, with equal tokens", ylabel="training loss (nats per token)")
    axes[1].set(xlabel="training TFLOP", xscale="log")


def _figure4(axes: Any, runs: Runs) -> None:
    totals = [[run["training_flops"] / 1e12 for run in found] for found in runs.values()]
    names = [LABELS[side].split(" (")[0] for side in runs]
    axes[0].bar(names, [float(np.mean(t)) for t in totals], yerr=[(max(t) - min(t)) / 2 for t in totals],
                color=COLOURS[: len(names)], capsize=4)  # fmt: skip
    axes[0].set(ylabel="TFLOP of a training run, equal tokens")


def _figure5(axes: Any, runs: Runs) -> None:
    for number, (side, (row,)) in enumerate(runs.items()):
        points = [(int(column.removeprefix("memory_")), value / 1e6) for column, value in row.items()]
        axes[0].plot(*zip(*points, strict=True), label=LABELS[side].split(" (")[0], **_style(number))
    axes[0].set(xlabel="evaluations in training", ylabel="peak memory of a step (MB)", ylim=(0, None))


def _figure6(axes: Any, runs: Runs) -> None:
    for each, side in zip(axes, ("attractor", "looped"), strict=False):
        for paths in [runs[side][0]["paths"]] if side in runs else []:
            for number, path in enumerate(np.swapaxes(np.array(paths), 0, 1)):
                each.plot(*path.T, color=COLOURS[number], marker=".", alpha=0.8)
                each.plot(*path[-1], color=COLOURS[number], marker="*", markersize=11)
        each.set(xlabel="first principal component", title=f"{side}: tokens over 16 evaluations")
    axes[0].set(ylabel="second principal component")
    for number, side in enumerate(side for side in runs if side != "looped"):
        for run in runs[side]:
            steps, calls = [line["step"] for line in run["curve"]], [line["calls"] for line in run["curve"]]
            axes[2].plot(steps, calls, color=COLOURS[number], label=side if run is runs[side][0] else None)
    axes[2].set(xlabel="training step", title="evaluations in training", ylim=(0, None))


def _figure7(axes: Any, runs: Runs) -> None:
    depths = (0, 1, 2, 4, 8)
    for number, (side, found) in enumerate(runs.items()):
        for run in found:
            label = LABELS[side].split(" (")[0] if run is found[0] else None
            axes[0].plot(range(5), [run[f"ppl_{d}"] for d in depths], label=label, alpha=0.8, **_style(number))
    axes[0].set(xlabel="evaluations at test time", ylabel="perplexity of held-out text")
    axes[0].set_xticks(range(5), [str(d) for d in depths])
    use_log_scale(axes[0])
