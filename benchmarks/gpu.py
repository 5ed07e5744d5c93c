"""What one GPU makes of training: rates, share of its peak, memory, waits; and the paper's tables. Pieces of ten minutes.

    python -m benchmarks.gpu language      # the attractor and the plain Transformer of its depth, eager and compiled
    python -m benchmarks.gpu memory        # the attractor's peak at 4 to 64 evaluations
    python -m benchmarks.gpu reasoners     # the attractor, TRM, HRM and the Transformer on Sudokus
    python -m benchmarks.gpu paper         # benchmarks.paper at the largest scale that fits; repeat it to continue

Steps are a recipe's own, on random data, all batches of them and the optimiser included; sides take turns, and figures
are medians. Every side's work counts the evaluations that its solves really made. What was to be reached is printed
beside what was. Written to ``results/scale/gpu-PIECE.json``. Without a GPU the same runs at a small size, which says so
and goes to ``cpu-PIECE.json``; what only a GPU tells is then left out.
"""

import statistics
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch._dynamo.utils import counters

from attractor.config import override
from attractor.experiment.cost.estimate import CostEstimate, estimate_cost
from attractor.experiment.cost.step_benchmark import StepBenchmark
from attractor.experiment.device import free_memory, peak_flops
from attractor.experiment.environment import environment
from attractor.files import json_safe, write_json
from attractor.recipes import Recipe
from attractor.recipes import get as get_recipe
from attractor.recipes.puzzles import REASONER_FAMILIES as FAMILIES
from attractor.training import PRECISIONS, DistributedContext
from benchmarks import paper as paper_benchmark
from benchmarks.command import run_command
from benchmarks.memory import EVALUATIONS
from benchmarks.paper_items import SCALES, language_recipe
from benchmarks.reasoning_step import host_waits

OUT = Path("results/scale")
WARM_UP = 2  # the first compiles, the second shows that nothing is left to compile
ON_GPU = torch.cuda.is_available()
LANGUAGE = "language/140m" if ON_GPU else "language/tiny"
# 524,288 tokens a step; by `attractor cost` 23 GB at the peak, so that both models, eager and compiled, are there side
# by side.
ROWS = ("text.batch_size=16", "train.accumulate=16") if ON_GPU else ("text.batch_size=2", "model.vocab_size=512")
SUDOKU = "sudoku/extreme" if ON_GPU else "sudoku/6x6"
PUZZLES = () if ON_GPU else ("supervision.batch_size=8",)
Set = Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")]


class Side:
    """A recipe in training, and what is known of it."""

    def __init__(self, recipe: Recipe, *, compiled: bool) -> None:
        self.found: CostEstimate = estimate_cost(recipe, evaluations=8)
        fitted = self.found.recipe if self.found.unit == "puzzle" else recipe  # that one would fix the evaluations
        known = _graphs()
        self.trial, self.compiled = StepBenchmark(fitted, compiled=compiled), compiled
        warm_up = [self.trial.time_step()[0] for _ in range(WARM_UP)]
        self.row: dict[str, Any] = {"graphs": _graphs() - known, "warm_up_seconds": sum(warm_up), "new_graphs": 0}
        self.seconds: list[tuple[float, float]] = []  # of the clock and of the processor
        self.trial.evaluations.clear()

    def turn(self) -> None:
        """Make a step and note what it took."""
        known = _graphs()
        self.seconds.append(self.trial.time_step())
        self.row["new_graphs"] += _graphs() - known

    def figures(self, peak: float) -> dict[str, Any]:
        """Return everything, on a device of that many operations a second."""
        found, calls = self.found, statistics.mean(self.trial.evaluations)
        seconds, processor = (statistics.median(each) for each in zip(*self.seconds, strict=True))
        units, work = found.units_per_step, found.flops(calls)
        self.row |= {f"{found.unit}s_per_second": units / seconds, "steps_per_second": 1 / seconds}
        self.row |= {"processor_seconds": processor, "evaluations": calls, "gflop_per_unit": work / 1e9}
        self.row |= {"flops_per_second": units * work / seconds, "mfu": units * work / seconds / peak}
        if ON_GPU or not self.compiled:  # on a processor what compiled code makes is not seen
            self.row |= {"peak_gb": self.trial.peak_memory() / 1e9, "estimated_gb": found.memory.peak / 1e9}
        return self.row


def language(size: str = LANGUAGE, set: Set = ROWS, repeats: int = 6) -> dict[str, Any]:
    """Measure the attractor and the Transformer, eager and compiled.

    Args:
        size: The attractor's recipe.
        set: Settings of both models to change.
        repeats: Steps of each side.
    """
    sides = {
        f"{name}, {'compiled' if compiled else 'eager'}": Side(override(get_recipe(recipe), set), compiled=compiled)
        for name, recipe in {"attractor": size, "Transformer": f"{size}-transformer"}.items()
        for compiled in (False, True)
    }
    rows = _take_turns(sides, repeats)
    for name in ("attractor", "Transformer"):
        pairs = zip(sides[f"{name}, eager"].seconds, sides[f"{name}, compiled"].seconds, strict=True)
        rows[f"{name}, compiled"]["speed_up"] = statistics.median(slow[0] / fast[0] for slow, fast in pairs)
    ours, plain = (rows[f"{name}, compiled"] for name in ("attractor", "Transformer"))
    goals = {
        "MFU of the attractor": (ours["mfu"], ">=", 0.4),
        "operations a second, of the Transformer's": (ours["mfu"] / plain["mfu"], ">=", 0.95),
        "graphs compiled after warming up": (sum(row["new_graphs"] for row in rows.values()), "<=", 0),
    }
    return _write("language", f"a training step of {size}", rows, goals, {"size": size, "set": set, "repeats": repeats})


def memory(size: str = LANGUAGE, set: Set = ROWS, evaluations: tuple[int, ...] = EVALUATIONS) -> dict[str, Any]:
    """Measure the peak of the attractor's training at forced numbers of evaluations.

    Args:
        size: The attractor's recipe.
        set: Settings to change.
        evaluations: How many to make.
    """
    rows: dict[str, Any] = {}
    for n in evaluations:
        forced = ("model.tolerance=1e-6", f"model.min_evaluations={n}", f"model.max_evaluations={n}")
        # More batches of a step take no more memory than two, of which the second finds the first one's gradients.
        config = override(get_recipe(size), (*set, *forced, "train.accumulate=2"))
        trial = StepBenchmark(config, compiled=ON_GPU)
        trial.step()
        peak = trial.peak_memory()
        assert trial.evaluations == [n] * len(trial.evaluations), trial.evaluations
        estimate = estimate_cost(config, evaluations=n).memory.peak
        rows[str(n)] = {"evaluations": n, "peak_gb": peak / 1e9, "estimated_gb": estimate / 1e9}
        del trial
    growth = rows[str(evaluations[-1])]["peak_gb"] / rows[str(evaluations[0])]["peak_gb"]
    goals = {f"peak at {evaluations[-1]} evaluations, of that at {evaluations[0]}": (growth, "<=", 1.02)}
    settings = {"size": size, "set": set, "evaluations": evaluations}
    return _write("memory", f"peak memory of training {size}", rows, goals, settings)


def reasoners(
    task: str = SUDOKU, families: tuple[str, ...] = FAMILIES, set: Set = PUZZLES, repeats: int = 20
) -> dict[str, Any]:
    """Measure families of reasoners, compiled as on a GPU.

    Args:
        task: The attractor's recipe.
        families: Endings of the other recipes.
        set: Settings of all to change, such as supervision.batch_size=384.
        repeats: Steps of each side.
    """
    names = {family: task if family == "attractor" else f"{task}-{family}" for family in families}
    sides = {family: Side(override(get_recipe(name), set), compiled=True) for family, name in names.items()}
    rows = _take_turns(sides, repeats)
    for family, side in sides.items():
        rows[family]["host_waits"] = host_waits(partial(_segment, side)) if ON_GPU else None
    goals = {
        "graphs compiled after warming up": (sum(row["new_graphs"] for row in rows.values()), "<=", 0),
    }
    if ON_GPU:
        goals["waits of the host in a segment"] = (sum(row["host_waits"] for row in rows.values()), "<=", 0)
    return _write(
        "reasoners", f"a training step of {task}", rows, goals, {"task": task, "set": set, "repeats": repeats}
    )


def paper(
    items: tuple[paper_benchmark.Names, ...] = ("table1",),
    minutes: float = 10,
    scale: str | None = None,
    seeds: tuple[int, ...] = (0,),
    data: Path | None = None,
) -> None:
    """Run items of benchmarks.paper, paused after the minutes; the same command continues.

    Args:
        items: Tables and figures.
        minutes: Of training.
        scale: By default the largest at which the attractor trains within the minutes, at 40 % of the device's peak.
        seeds: Of weights and of the order of the text.
        data: Prepared text.
    """
    scale = scale or largest_scale(60 * minutes)
    print(f"scale {scale}")
    paper_benchmark.OUT = OUT.with_name("paper")
    paper_benchmark.paper(items, scale=scale, seeds=seeds, data=data, minutes=minutes)


def largest_scale(seconds: float) -> str:
    """Return the largest scale at which the attractor's training takes so long, and fits into memory; else tiny."""
    device, fitting = DistributedContext().device, "tiny"
    for scale in SCALES:
        recipe = language_recipe("attractor", scale, 0)
        found = estimate_cost(recipe, evaluations=8)
        work = (
            found.flops(8) * found.units_per_step * (recipe.train.num_steps or 0)
        )  # NaN where an adjoint solve decides
        rate = 0.4 * peak_flops(device, PRECISIONS[recipe.train.precision])
        if work / rate <= seconds and found.memory.peak < free_memory(device):
            fitting = scale
    return fitting


def _segment(side: Side) -> None:
    """Make a segment and the way back, without the turnover of questions and the optimiser."""
    trial, found = side.trial, side.found
    questions = torch.zeros(found.setup.batch_size, 1, found.setup.length, dtype=torch.long, device=trial.device)
    precision = trial.recipe.train.precision
    with torch.autocast(trial.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        output = trial.model(questions, trial.model.init_state(questions))
    output.logits.float().sum().backward()
    trial.model.zero_grad()


def _graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def _take_turns(sides: dict[str, Side], repeats: int) -> dict[str, Any]:
    for _ in range(repeats):
        for side in sides.values():
            side.turn()
    trial = next(iter(sides.values())).trial
    peak = peak_flops(trial.device, PRECISIONS[trial.recipe.train.precision])
    return {name: side.figures(peak) for name, side in sides.items()}


def _write(
    piece: str, title: str, rows: dict[str, Any], goals: dict[str, tuple[float, str, float]], settings: dict[str, Any]
) -> dict[str, Any]:
    """Print and write figures and goals, and return what was written."""
    console = Console(width=160)
    if not ON_GPU:
        console.print(
            "No GPU here: a small size on the processor, which shows that this runs and says nothing of a GPU."
        )
    names = dict.fromkeys(name for row in rows.values() for name in row)
    view = Table(title=title, title_justify="left")
    for column in ("side", *names):
        view.add_column(column.replace("_", " "), justify="right")
    for side, row in rows.items():
        values = (row.get(name) for name in names)
        view.add_row(side, *("" if v is None else f"{v:.3g}" if v < 1000 else f"{v:,.0f}" for v in values))
    console.print(view)
    reached = {
        name: {"figure": figure, "goal": f"{sign} {goal}", "met": figure >= goal if sign == ">=" else figure <= goal}
        for name, (figure, sign, goal) in goals.items()
    }
    for name, goal in reached.items():
        console.print(f"{name}: {goal['figure']:.3g}, goal {goal['goal']}: {'met' if goal['met'] else 'missed'}")
    result = json_safe(
        {"piece": piece, "settings": settings, "environment": environment(), "rows": rows, "goals": reached}
    )
    write_json(OUT / f"{'gpu' if ON_GPU else 'cpu'}-{piece}.json", result)
    return result


if __name__ == "__main__":
    run_command(language, memory, reasoners, paper)
