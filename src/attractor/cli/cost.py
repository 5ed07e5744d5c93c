"""``attractor cost``: what a recipe takes, before anyone spends a day of GPUs on it."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from attractor.config import override
from attractor.errors import ConfigError
from attractor.experiment.cost.device import PEAK_FLOPS
from attractor.experiment.cost.estimate import CostEstimate, MeasuredCost, estimate_cost, measure_cost, parameters
from attractor.experiment.environment import environment
from attractor.files import json_safe, write_json
from attractor.recipes import RETROFIT
from attractor.recipes import get as get_recipe

EXPECTED_MFU = 0.4
DAY = 86_400
LARGE = 80e9  # bytes of an H100


def cost(
    recipe: tyro.conf.Positional[str],
    /,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = (),
    evaluations: int = 8,
    world_size: int = 1,
    strategy: Literal["ddp", "fsdp"] | None = None,
    measured: Annotated[bool, tyro.conf.arg(name="measure")] = True,
    json: Path | None = None,
) -> None:
    """Tell what training a recipe takes: weights, operations, memory and time, reckoned and, on a scale that fits, measured.

    Reckoning takes seconds, for any size and on any machine. Measuring makes a few real steps on random data.

    Args:
        recipe: A recipe's name, as for attractor train, such as language/140m or sudoku/6x6-trm.
        set: Settings to change, such as text.batch_size=128 train.accumulate=2.
        evaluations: How many a solve of a language model is expected to make in training, within the recipe's least and most. The
            log of a run says how many it makes. Looped models and puzzles have numbers of their own.
        world_size: Processes, each with a device of its own, that share every batch.
        strategy: How they share the model; by default the recipe's train.parallel.
        measured: Make a few real steps here, of a smaller batch if need be, within about a minute.
        json: A file to write all figures to.
    """
    if recipe == RETROFIT:
        raise ConfigError(f"{recipe} takes its sizes from a checkpoint; ask for a recipe that has sizes of its own.")
    settings = override(get_recipe(recipe), set)
    if strategy is not None and world_size == 1:
        raise ConfigError(f"--strategy {strategy}: one process shares with nobody; say --world-size too.")
    shared = "none" if world_size == 1 else strategy or settings.train.parallel
    found = estimate_cost(settings, evaluations=evaluations, world_size=world_size, strategy=shared)
    console = Console()
    for view in (_weights(found), _operations(found), _memory(found)):
        console.print(view)
    real = measure_cost(found) if measured else "not measured: told not to."
    console.print(_speed(found, real))
    for line in _remarks(found, real):
        console.print(line, highlight=False, soft_wrap=True)
    if json is not None:
        write_json(json, {"recipe": recipe, "set": set, "environment": environment(), **figures(found, real)})


def figures(found: CostEstimate, real: MeasuredCost | str) -> dict[str, Any]:
    """Return everything that is printed as plain data."""
    plain: dict[str, Any] = json_safe(
        {
            "parameters": parameters(found.model),
            "evaluations": found.evaluations,
            "world_size": found.run.world_size,
            "strategy": found.run.strategy,
            "flops_per_unit": {
                "unit": found.unit,
                "forward": found.forward(found.evaluations),
                "training": found.flops,
            },
            "steps": found.steps,
            "units_per_step": found.units,
            "total_flops": found.total,
            "memory": {**asdict(found.memory), "peak": found.memory.peak},
            "days": {name: days(found, flops) for name, flops in PEAK_FLOPS.items()},
            "measured": asdict(real) if isinstance(real, MeasuredCost) else real,
        }
    )
    return plain


def days(found: CostEstimate, peak: float, mfu: float = EXPECTED_MFU) -> float | None:
    """Return the days of the whole run on devices of that peak."""
    return None if found.total is None else found.total / (peak * mfu * found.run.world_size) / DAY


def _table(title: str, *columns: str) -> Table:
    view = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        view.add_column(column, justify="right" if i else "left", no_wrap=True)
    return view


def _weights(found: CostEstimate) -> Table:
    view = _table("weights", "part", "number")
    parts = parameters(found.model)
    for part, number in parts.items():
        view.add_row(part, f"{number:,}")
    view.add_row("all", f"{sum(parts.values()):,}")
    return view


def _operations(found: CostEstimate) -> Table:
    view = _table(f"operations per {found.unit}", "evaluations", "answering", "training")
    for n in sorted({1, 4, found.evaluations, 2 * found.evaluations, 4 * found.evaluations}):
        own = n == found.evaluations
        trains = own or (found.unit == "token" and len(_repeated(found)) > 0)
        view.add_row(f"{n}{' *' * own}", _flop(found.forward(n)), _flop(found.training(n)) if trains else "")
        if not _repeated(found):
            break
    return view


def _repeated(found: CostEstimate) -> range:
    repeated: range = getattr(found.model, "repeated", range(1))  # of a reasoner, everything
    return repeated


def _memory(found: CostEstimate) -> Table:
    m, run = found.memory, found.run
    where = f", each of {run.world_size} devices ({run.strategy})" if run.world_size > 1 else ""
    view = _table(f"memory at a batch of {run.batch_size}{where}", "part", "MB")
    rows = {
        "weights": m.weights,
        "averaged weights": m.averaged,
        "optimiser's state": m.optimizer,
        "gradients": m.gradients,
        "weights gathered": m.gathered,
        "weights in bf16": m.cast,
        "activations of what is passed once" if found.unit == "token" else "states and questions": m.backbone,
        "activations of tracked evaluations": m.tracked,
        "logits and their gradient": m.logits,
        "the solver's history (gone by then)": m.solving,
    }
    for name, size in rows.items():
        if size:
            view.add_row(name, f"{size / 1e6:,.1f}")
    view.add_row("at the peak", f"{m.peak / 1e6:,.1f}")
    return view


def _speed(found: CostEstimate, real: MeasuredCost | str) -> Table:
    unit = "token" if found.unit == "token" else "segment"
    view = _table("time", "device", f"{unit}s/s", "MFU", "whole run")
    if isinstance(real, MeasuredCost):
        here = None if found.steps is None else found.units * found.steps / real.rate
        view.add_row("here, measured", f"{real.rate:,.0f}", f"{real.mfu:.1%}", _time(here))
    for name in ("H200", "H100", "A100"):
        rate = EXPECTED_MFU * PEAK_FLOPS[name] * found.run.world_size / found.flops
        span = days(found, PEAK_FLOPS[name])
        number = f"{found.run.world_size} × " if found.run.world_size > 1 else ""
        view.add_row(f"{number}{name}, estimated", f"{rate:,.0f}", f"{EXPECTED_MFU:.0%}", _time(span and span * DAY))
    return view


def _remarks(found: CostEstimate, real: MeasuredCost | str) -> list[str]:
    lines = []
    if found.unit == "token":
        lines += [f"* expected of a solve; a row has {found.size:,} tokens. A step has {found.units:,} tokens."]
    else:
        lines += [f"* a training segment; a step is one segment of {found.units:,} puzzles of {found.size} cells."]
    if found.total is not None:
        lines += [f"The whole run: {found.steps:,} steps, {_flop(found.total)}."]
    else:
        lines += [f"The clock ends the run, after {_time(found.recipe.train.seconds)} of training."]
    if found.memory.peak > LARGE:
        smaller = "text.batch_size and raise train.accumulate" if found.unit == "token" else "supervision.batch_size"
        lines += [f"More than an H100 has: lower {smaller}, or add devices."]
    if isinstance(real, str):
        return [*lines, real[0].upper() + real[1:]]
    ratio = real.estimate / real.peak
    lines += [
        f"Measured with a batch of {real.batch_size}: {real.peak / 1e6:,.1f} MB at the peak, "
        f"estimated for it {real.estimate / 1e6:,.1f} MB ({ratio:.2f} times)."
    ]
    if real.batch_size < found.run.batch_size:
        lines += ["That batch is smaller than the recipe's, which is too much for a minute or this memory."]
    return lines


def _flop(number: float) -> str:
    if number != number:
        return "unknown"
    for factor, name in ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if number >= factor:
            return f"{number / factor:,.2f} {name}"
    return f"{number / 1e6:,.2f} MFLOP"


def _time(seconds: float | None) -> str:
    if seconds is None or seconds != seconds:
        return "–"
    for length, name in ((DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= length:
            return f"{seconds / length:,.1f} {name}"
    return f"{seconds:.1f} seconds"
