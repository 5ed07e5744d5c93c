"""Sudokus: the attractor reasoner, TRM, EqR, HRM and a Transformer in one training loop, at equal steps, over seeds.

    python -m benchmarks.sudoku run --size 6 --num-steps 1200 --threads 1     # all sides and seeds, a few minutes each
    python -m benchmarks.sudoku run --size 6 --sides attractor --seeds 0      # for the recipe's time, on all cores
    python -m benchmarks.sudoku run --size 9 --data FOLDER --name extreme     # your own puzzles, prepared as a folder
    python -m benchmarks.sudoku show                                          # the table and the curves of all finished runs

All sides have the same training puzzles (1,000 of 6 digits, 10,000 of 9, or a folder's), batch size, optimiser, layer
type and width. They are evaluated on the same unseen puzzles (500, or the folder's test split), none of them a
symmetric copy of a training puzzle. Learning curves use 100 other puzzles; with a folder, a hundred of its test split,
and nothing is tuned on these curves. Every finished run is written to ``results/sudoku`` at once.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from attractor.config import override, to_dict
from attractor.data import puzzles, sudoku
from attractor.experiment.environment import environment
from attractor.experiment.puzzle_evaluation import evaluate_puzzles
from attractor.experiment.puzzles import train_reasoner, training_puzzles
from attractor.files import json_safe, write_json
from attractor.models.reasoning import Reasoner
from attractor.plots.style import COLOURS, new_figure, save
from attractor.progress import TrainingProgress
from attractor.recipes import sudoku as sudoku_recipe
from attractor.training import find_checkpoint
from benchmarks import with_spread
from benchmarks.command import run_command

OUT = Path("results/sudoku")
SIDES = {
    "attractor": "attractor",
    "trm": "TRM",
    "eqr": "EqR",
    "hrm": "HRM",
    "transformer": "Transformer",
}  # and their names in figures
TITLES = {
    "6x6": "6 × 6 Sudoku, ten clues, six minutes",
    "6x6-steps": "6 × 6 Sudoku, ten clues, 1,200 steps",
    "6x6-2116": "6 × 6 Sudoku, ten clues, 2,116 steps",
    "9x9-minimal": "minimal 9 × 9 Sudoku",
    "extreme": "the hardest 9 × 9 Sudokus",
}
DEPTHS = (1, 2, 4, 8, 12, 16, 32)
NUM_TEST, NUM_WATCHED = 500, 100
WATCHED = ("step", "seconds", "loss", "batch_exact", "held_out", "held_out_ema", "grad_norm", "residual")
TEST_SEED = 1_000_000


def run(
    size: int = 6,
    sides: tuple[Literal["attractor", "trm", "eqr", "hrm", "transformer"], ...] = tuple(SIDES),
    seeds: tuple[int, ...] = (0, 1, 2),
    num_steps: int | None = None,
    set: tuple[str, ...] = (),
    data: Path | None = None,
    name: str = "",
    threads: int | None = None,
) -> None:
    """Train and evaluate the sides, for every seed.

    Args:
        size: Digits of the Sudokus, 6 or 9.
        sides: Models to train.
        seeds: Seeds of weights, batches and initial states; the puzzles are the same for all.
        num_steps: Optimiser steps of every side; by default each side trains for the recipe's time.
        set: Settings to change, such as data.clues=30.
        data: A folder of puzzles for training and evaluation, instead of generated ones.
        name: Name of the result files when settings or data are changed; by default 6x6 or 9x9.
        threads: Threads of torch.
    """
    if data is not None and not name:
        raise SystemExit("--data: give the results a --name, such as extreme.")
    if threads:
        torch.set_num_threads(threads)
    name = name or f"{size}x{size}" + ("" if num_steps is None else "-steps")
    for seed in seeds:
        for side in sides:
            recipe = sudoku_recipe(size, side)
            length: dict[str, Any] = {} if num_steps is None else {"seconds": None, "num_steps": num_steps}
            recipe = replace(recipe, train=replace(recipe.train, seed=seed, **length))
            recipe = override(recipe, set)
            train = training_puzzles(recipe, data)
            clues = getattr(recipe.data, "clues", None)
            if data is not None:
                test = puzzles.read(data, "test")
                watched = test[slice(None, None, max(1, len(test) // NUM_WATCHED))]
            else:
                test = sudoku.generate(NUM_TEST, size=size, clues=clues, seed=TEST_SEED, exclude=train)
                known = train + test
                watched = sudoku.generate(NUM_WATCHED, size=size, clues=clues, seed=2 * TEST_SEED, exclude=known)
            with tempfile.TemporaryDirectory() as folder, TrainingProgress(f"{name} {side} {seed}") as progress:
                start = time.process_time()
                loaded = train_reasoner(recipe, Path(folder), data=data, held_out=watched, callbacks=[progress])
                model = loaded.model
                spent = time.process_time() - start
                steps = int(find_checkpoint(Path(folder)).name.removeprefix("step-"))
                log = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
            figures = evaluate_puzzles(
                loaded,
                test,
                depths=DEPTHS,
                breadths=(1, 4) if model.random_init else (1,),
                selections=("residual",),
                batch_size=250,
                seed=seed,
            )
            result = {
                "command": f"python -m benchmarks.sudoku run --size {size} --sides {side} --seeds {seed}"
                + (f" --num-steps {num_steps}" if num_steps else "")
                + (f" --set {' '.join(set)}" if set else "")
                + (" --data FOLDER" if data else "")
                + (f" --name {name}" if set or data else "")
                + (f" --threads {threads}" if threads else ""),
                "environment": environment(),
                "side": side,
                "seed": seed,
                "steps": steps,
                "seconds": log[-1]["seconds"],
                "processor_seconds": spent,
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "flops_per_evaluation": flops(model, size),
                "recipe": to_dict(recipe),
                **figures,
                "curve": [{k: row.get(k) for k in WATCHED} for row in log],
            }
            write_json(OUT / f"{name}-{side}-{seed}.json", json_safe(result))
            print(name, side, seed, steps, figures["exact_by_residual"], flush=True)


def flops(model: Reasoner, size: int) -> int:
    """Count the floating-point operations of one evaluation of one puzzle."""
    question = torch.zeros(1, size, size, dtype=torch.long, device=next(model.parameters()).device)
    state = model.init_state(question)
    counts = []
    for n in (1, 2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(question, state, depth=n)
        counts.append(counter.get_total_flops())
    return counts[1] - counts[0]


def show() -> None:
    """Print means and standard deviations over seeds, write them to summary.json, and plot the learning curves."""
    view = Table(
        title="unseen Sudokus right in every cell, %: mean ± standard deviation over seeds", title_justify="left"
    )
    for column in ("task", "side", "seeds", "weights", "steps", *(f"depth {d}" for d in DEPTHS), "AUROC"):
        view.add_column(column, justify="right", no_wrap=True)
    rows, names = [], sorted({f.name.rsplit("-", 2)[0] for f in OUT.glob("*-*-*.json")})
    for name in names:
        figure, (axes,) = new_figure()
        for number, (side, label) in enumerate(SIDES.items()):
            runs = [json.loads(f.read_text()) for f in sorted(OUT.glob(f"{name}-{side}-*.json"))]
            if not runs:
                continue
            by_depth = list(zip(*(r["exact_by_residual"][0] for r in runs), strict=True))
            row = {
                "task": name,
                "side": side,
                "seeds": len(runs),
                "num_parameters": runs[0]["num_parameters"],
                "flops_per_evaluation": runs[0]["flops_per_evaluation"],
                "steps": statistics.mean(r["steps"] for r in runs),
                "processor_seconds": statistics.mean(r["processor_seconds"] for r in runs),
                "exact": {d: [statistics.mean(e), _deviation(e)] for d, e in zip(DEPTHS, by_depth, strict=True)},
                "residual_auroc": [r["residual_auroc"][DEPTHS.index(16)] for r in runs],
            }
            rows.append(row)
            shares = [with_spread(100 * m, None if d is None else 100 * d, 1) for m, d in row["exact"].values()]
            known = [a for a in row["residual_auroc"] if a is not None]
            auroc = f"{statistics.mean(known):.3f}" if known else "–"
            view.add_row(
                name, side, str(len(runs)), f"{row['num_parameters']:,}", f"{row['steps']:.0f}", *shares, auroc
            )
            for which, r in enumerate(runs):
                curve = [(p["step"], 100 * p["held_out"]) for p in r["curve"] if p["held_out"] is not None]
                axes.plot(
                    *zip(*curve, strict=True), color=COLOURS[number], alpha=0.7, label=label if which == 0 else None
                )
        axes.set(xlabel="optimiser steps", ylabel="unseen puzzles right in every cell (%)", ylim=(-3, 103))
        axes.set_title(TITLES.get(name, "Sudoku"))
        axes.legend(title="one line per seed", fontsize=9)
        save(figure, OUT / f"{name}.png")
    Console(width=200).print(view)
    write_json(OUT / "summary.json", {"command": "python -m benchmarks.sudoku show", "rows": rows})


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


if __name__ == "__main__":
    run_command(run, show)
