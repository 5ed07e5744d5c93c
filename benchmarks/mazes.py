"""The maze demo over seeds, and a step-matched control without auxiliary targets: what generalises to larger mazes?

    python -m benchmarks.mazes demo                     # both sides, five seeds, about 50 minutes on two cores
    python -m benchmarks.mazes demo --sides answers     # one side; the results of the other are kept
    python -m benchmarks.mazes families --data FOLDER   # TRM, EqR and ours on Maze-Hard, for the same time
    python -m benchmarks.mazes package                  # the model of the package on mazes of several kinds

The control is the same network on the same mazes for the same number of optimiser steps, and learns from the answers
alone. Both are evaluated on the same unseen mazes, which are of another kind, by depth and after convergence.
Every finished run is written to ``results/mazes`` at once. Use an idle machine: a time limit ends the attractor's
training, as in the demo.

The families have convolutional layers of the same width, the same training mazes and the same time. They are evaluated on
the same test mazes, after the same numbers of calls of their network.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from attractor import evaluate, load, recipes
from attractor.config import change, override, to_dict
from attractor.data import maze
from attractor.experiment.demo import TEST_SEED, TOLERANCE, draw, evaluate_sizes
from attractor.experiment.environment import environment
from attractor.experiment.puzzles import as_tensors, train_reasoner
from attractor.files import json_safe, write_json
from attractor.progress import TrainingProgress
from attractor.recipes import maze as maze_recipe
from attractor.training import find_checkpoint
from benchmarks.command import run_command

OUT = Path("results/mazes")
SHOWN = (16, 32, 64, 128, 256)
CALLS = (64, 128, 256, 512)  # of the network, for every family


def run(side: str, seed: int, minutes: float, console: Console) -> None:
    """Train and evaluate one side with one seed and write ``results/mazes/SIDE-SEED.json``."""
    recipe = maze_recipe(minutes=minutes, seed=seed)
    if side == "answers":
        steps = json.loads((OUT / f"attractor-{seed}.json").read_text())["steps"]
        length = {"seconds": None, "num_steps": steps}
        recipe = change(recipe, {"supervision": {"auxiliary_weight": 0.0}, "train": length})
    with tempfile.TemporaryDirectory() as folder, TrainingProgress(f"{side} {seed}", console) as progress:
        model = train_reasoner(recipe, Path(folder), callbacks=[progress]).model
        steps = int(find_checkpoint(Path(folder)).name.removeprefix("step-"))
    torch.manual_seed(seed)
    sizes = evaluate_sizes(model)
    result = {
        "command": f"python -m benchmarks.mazes demo --sides {side} --seeds {seed} --minutes {minutes:g} "
        f"--threads {torch.get_num_threads()}",
        "environment": environment(),
        "steps": steps,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "recipe": to_dict(recipe),
        "sizes": {name: dataclasses.asdict(evaluation) for name, evaluation in sizes.items()},
    }
    write_json(OUT / f"{side}-{seed}.json", result)
    if (side, seed) == ("attractor", 0):
        draw(model, sizes, OUT)


def summary(console: Console) -> None:
    """Print means over all finished seeds, and write them to ``summary.json``."""
    view = Table(title="unseen mazes solved exactly, %: mean over seeds", title_justify="left")
    for column in ("side", "seeds", "size", *map(str, SHOWN), "end", "converged", "right if converged", "lowest"):
        view.add_column(column, justify="right", no_wrap=True)
    rows = []
    for side in ("attractor", "answers"):
        runs = [json.loads(file.read_text()) for file in sorted(OUT.glob(f"{side}-*.json"))]
        for name in runs[0]["sizes"] if runs else ():
            sizes = [r["sizes"][name] for r in runs]
            known = [s["accuracy_given_converged"] for s in sizes if s["accuracy_given_converged"] is not None]
            by_depth = {
                d: statistics.mean(p["exact"] for s in sizes for p in s["points"] if p["depth"] == d) for d in SHOWN
            }
            row = {
                "side": side,
                "seeds": len(runs),
                "size": name,
                "exact_at_depth": by_depth,
                **{k: statistics.mean(s[k] for s in sizes) for k in ("exact", "converged", "evaluations")},
                "accuracy_given_converged": statistics.mean(known) if known else None,
                "lowest_exact": min(s["exact"] for s in sizes),
            }
            rows.append(row)
            figures = [
                *by_depth.values(),
                row["exact"],
                row["converged"],
                row["accuracy_given_converged"],
                row["lowest_exact"],
            ]
            shown = ("–" if figure is None else f"{100 * figure:.1f}" for figure in figures)
            view.add_row(side, str(len(runs)), name, *shown)
    console.print(view)
    write_json(OUT / "summary.json", {"command": "python -m benchmarks.mazes demo", "rows": rows})


def demo(
    sides: tuple[Literal["attractor", "answers"], ...] = ("attractor", "answers"),
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    minutes: float = 4.0,
    threads: int | None = None,
) -> None:
    """Train and evaluate, then print the table of everything in results/mazes.

    Args:
        sides: Sides to run; the other side takes its number of steps from the attractor's result.
        seeds: Seeds to run.
        minutes: Training time of the attractor's side.
        threads: Of this process.
    """
    if threads:
        torch.set_num_threads(threads)
    console = Console(width=140)
    for side in sides:
        for seed in seeds:
            run(side, seed, minutes, console)
    summary(console)


def families(
    data: Path,
    sides: tuple[Literal["attractor", "trm", "eqr"], ...] = ("attractor", "trm", "eqr"),
    seeds: tuple[int, ...] = (0,),
    seconds: float = 3600.0,
    num_steps: int | None = None,
    limit: int | None = None,
    set: tuple[str, ...] = (),
    name: str = "hard",
) -> None:
    """Train families of models on a folder of mazes, and evaluate each on its test mazes.

    Args:
        data: The folder, such as that of: attractor data mazes --style walls --size 30 --min-path 111.
        sides: Models to train.
        seeds: Seeds of weights and batches.
        seconds: Training time of every side.
        num_steps: Optimiser steps of every side, instead of a time.
        limit: Evaluate on so many test mazes; by default on all.
        set: Settings to change in every recipe.
        name: Name of the result files.
    """
    for seed in seeds:
        for side in sides:
            recipe = override(recipes.maze_walls(side, minutes=seconds / 60, seed=seed), set)
            if num_steps:
                recipe = dataclasses.replace(
                    recipe, train=dataclasses.replace(recipe.train, seconds=None, num_steps=num_steps)
                )
            with tempfile.TemporaryDirectory() as folder, TrainingProgress(f"{name} {side} {seed}") as progress:
                start = time.process_time()
                loaded = train_reasoner(recipe, Path(folder), data=data, callbacks=[progress])
                spent = time.process_time() - start
                steps = int(find_checkpoint(Path(folder)).name.removeprefix("step-"))
            update = getattr(loaded.model.config, "update", None)
            per_evaluation = getattr(update, "num_latent", 0) + 1
            figures = evaluate(
                loaded, data, depths=[calls // per_evaluation for calls in CALLS], limit=limit, batch_size=50, seed=seed
            )
            row = {k: figures["results"][k][0] for k in ("exact_by_residual", "right_by_residual")}
            result = {
                "command": f"python -m benchmarks.mazes families --data FOLDER --sides {side} --seeds {seed}"
                + (f" --num-steps {num_steps}" if num_steps else f" --seconds {seconds:g}")
                + (f" --limit {limit}" if limit else "")
                + (f" --set {' '.join(set)}" if set else "")
                + f" --name {name}",
                "environment": environment(),
                "steps": steps,
                "processor_seconds": spent,
                "num_parameters": sum(p.numel() for p in loaded.model.parameters()),
                "recipe": to_dict(recipe),
                "calls": CALLS,
                "results": figures["results"],
            }
            write_json(OUT / f"{name}-{side}-{seed}.json", json_safe(result))
            print(name, side, seed, f"{steps} steps,", "calls, as labelled, valid and shortest:", flush=True)
            for calls, exact, right in zip(CALLS, *row.values(), strict=True):
                print(f"  {calls:4}  {100 * exact:5.1f} %  {100 * right:5.1f} %", flush=True)


KINDS = {
    "perfect, 11×11": partial(maze.generate, size=11),
    "perfect, 21×21": partial(maze.generate, size=21),
    "perfect, 31×31": partial(maze.generate, size=31),
    "perfect, depth-first, corner to corner, 31×31": partial(maze.generate, size=31, corners=True, dfs=True),
    "random walls, 21×21": partial(maze.generate_walls, size=21, min_path=20),
    "random walls, 41×41": partial(maze.generate_walls, size=41, min_path=120),
    "one cell of ten is a wall, 21×21": partial(maze.generate_walls, size=21, floor=0.9),
}


def package(num: int = 100, threads: int | None = None) -> None:
    """Solve unseen mazes of several kinds with the model that comes with the package, to its tolerance.

    Args:
        num: Mazes of each kind.
        threads: Of this process.
    """
    if threads:
        torch.set_num_threads(threads)
    model, rows = load("maze").model, {}
    for name, generate in KINDS.items():
        puzzles = generate(num, seed=TEST_SEED)
        output = model.solve(as_tensors(puzzles)[0])
        right = maze.valid_and_shortest(puzzles.questions, output.logits.argmax(dim=-1).numpy().astype("uint8"))
        converged = (output.solution.residual < TOLERANCE).numpy()
        rows[name] = {
            "right": float(right.mean()),
            "converged": float(converged.mean()),
            "right_if_converged": float(right[converged].mean()) if converged.any() else None,
            "evaluations": float(output.solution.evaluations.float().mean()),
        }
        print(name, rows[name], flush=True)
    command = f"python -m benchmarks.mazes package --num {num}"
    write_json(OUT / "package.json", {"command": command, "environment": environment(), "num": num, "kinds": rows})


if __name__ == "__main__":
    run_command(demo, families, package)
