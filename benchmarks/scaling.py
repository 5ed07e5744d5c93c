"""Do wider reasoners train stably? The attractor next to TRM, the same recursion unrolled, at equal steps, batches and
rates.

    python -m benchmarks.scaling run --width 128 --num-steps 600     # both sides, seed 0
    python -m benchmarks.scaling run --width 1216 --num-steps 60     # 27M weights
    python -m benchmarks.scaling run --width 512 --layers 8 --sides attractor trm paper --num-steps 100   # the paper's shape
    python -m benchmarks.scaling show                                # the table and the curves of all finished runs

1,000 augmented 6 × 6 Sudokus with ten clues. The MLP's hidden width is three times the width, and the learning rate is
inversely proportional to the width, with the values of ``sudoku/6x6`` at width 128. Training degrades where the loss
stops falling or gradients grow. Curves show training batches: the loss, the share right in every cell, the gradient
norm before clipping, and the residual. Every finished run is written to ``results/scaling`` at once.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from attractor.config import override, to_dict
from attractor.data.puzzles import FIRST_DEV_SEED
from attractor.data.sudoku import generate
from attractor.experiment.environment import environment
from attractor.experiment.puzzles import train_reasoner
from attractor.files import json_safe, write_json
from attractor.plots.style import COLOURS, new_figure, save, use_log_scale
from attractor.progress import TrainingProgress
from attractor.recipes import sudoku
from benchmarks.command import run_command

OUT = Path("results/scaling")
SIDES = {"attractor": "attractor", "trm": "TRM", "paper": "attractor as published"}  # and their names in the figure
WATCHED = {"exact": "batch_exact"} | {
    n: n for n in ("step", "seconds", "loss", "grad_norm", "residual")
}  # names in the log
LAST = 5  # the table shows means over so many reports at the end of a run


def run(
    width: int = 128,
    num_steps: int = 600,
    batch: int = 16,
    layers: int = 2,
    sides: tuple[Literal["attractor", "trm", "paper"], ...] = ("attractor", "trm"),
    seeds: tuple[int, ...] = (0,),
    threads: int = 1,
) -> None:
    """Train the sides, for every seed.

    Args:
        width: Channels per cell.
        num_steps: Optimiser steps.
        batch: Puzzles per step.
        layers: Layers of the network; with more than 2 it is not compiled, which would take minutes.
        sides: Models to train. paper: solved to a tolerance by Anderson acceleration, with one-step gradients.
        seeds: Seeds of weights, batches and initial states; the puzzles are the same for all.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    held_out = generate(8, size=6, clues=10, seed=FIRST_DEV_SEED)  # few: the figures are those of training batches
    network = [f"model.update.network.width={width}", f"model.update.network.hidden={3 * width}"]
    network.append(f"model.update.network.num_layers={layers}")
    shape = f"x{layers}" if layers != 2 else ""
    rate = f"train.optimizer.lr={2e-3 * 128 / width:.3g}"
    for seed in seeds:
        for side in sides:
            recipe = override(sudoku(6, side), [*network, rate, f"supervision.batch_size={batch}"])
            length = {"seconds": None, "num_steps": num_steps, "log_every": max(1, num_steps // 60)}
            recipe = replace(recipe, train=replace(recipe.train, seed=seed, compile=layers == 2, **length))
            with tempfile.TemporaryDirectory() as folder, TrainingProgress(f"{side} {width} {seed}") as progress:
                model = train_reasoner(recipe, Path(folder), held_out=held_out, callbacks=[progress])
                log = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
            result = {
                "command": f"python -m benchmarks.scaling run --width {width} --num-steps {num_steps} --batch {batch} "
                f"{f'--layers {layers} ' if layers != 2 else ''}--sides {side} --seeds {seed} --threads {threads}",
                "environment": environment(),
                "side": side,
                "seed": seed,
                "width": width,
                "layers": layers,
                "steps": num_steps,
                "num_parameters": sum(p.numel() for p in model.model.parameters()),
                "recipe": to_dict(recipe),
                "curve": [{name: row.get(logged) for name, logged in WATCHED.items()} for row in log],
            }
            write_json(OUT / f"{width}{shape}-{num_steps}-{side}-{seed}.json", json_safe(result))


def show() -> None:
    """Print the last reports of every run, and plot losses and gradient norms."""
    runs = [json.loads(file.read_text()) for file in sorted(OUT.glob("*-*-*-*.json"))]
    for run in runs:
        run["shape"] = (run.get("layers", 2), run["width"])
    runs.sort(key=lambda run: (run["shape"], run["side"], run["seed"]))
    view = Table(
        title=f"training: mean of the last {LAST} reports; gradient norms also at their maximum", title_justify="left"
    )
    for column in (
        "weights",
        "layers",
        "side",
        "seed",
        "steps",
        "loss",
        "exact, %",
        "gradient norm",
        "maximum",
        "residual",
    ):
        view.add_column(column, justify="right")
    shapes = sorted({run["shape"] for run in runs})
    figure, axes = new_figure(2 * len(shapes), 5.0, num_rows=2)
    for run in runs:
        curve, column = run["curve"], shapes.index(run["shape"])
        loss, exact, grad_norm, residual = (_last(curve, name) for name in ("loss", "exact", "grad_norm", "residual"))
        largest = max(row["grad_norm"] for row in curve if row["grad_norm"] is not None)
        view.add_row(
            f"{run['num_parameters']:,}", str(run["shape"][0]), run["side"], str(run["seed"]), str(run["steps"]), f"{loss:.3f}",
            f"{100 * exact:.1f}", f"{grad_norm:.3f}", f"{largest:.3f}", f"{residual:.3f}",
        )  # fmt: skip
        for row, name in enumerate(("loss", "grad_norm")):
            points = [(r["step"], r[name]) for r in curve if r[name] is not None]
            colour = COLOURS[list(SIDES).index(run["side"])]
            axes[row * len(shapes) + column].plot(
                *zip(*points, strict=True), color=colour, alpha=0.8, label=SIDES[run["side"]]
            )
        axes[column].set(title=f"{run['num_parameters'] / 1e6:.2g}M weights, {run['shape'][0]} layers")
        axes[len(shapes) + column].set(xlabel="optimiser steps")
    for each in axes:
        use_log_scale(each)
    axes[0].set(ylabel="loss")
    axes[len(shapes)].set(ylabel="gradient norm")
    for each in axes[: len(shapes)]:
        each.legend(fontsize=9)
    save(figure, OUT / "scaling.png")
    Console(width=120).print(view)


def _last(curve: Sequence[dict[str, float]], name: str) -> float:
    values = [row[name] for row in curve[-LAST:] if row[name] is not None]
    return sum(values) / len(values) if values else float("nan")


if __name__ == "__main__":
    run_command(run, show)
