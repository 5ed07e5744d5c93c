"""``attractor evaluate`` for reasoners: how many puzzles are right by depth and by breadth, and what the residual knows of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from torch import Tensor

from attractor.data import maze, puzzles, sudoku
from attractor.data.puzzles import Puzzles
from attractor.errors import ConfigError, DataError
from attractor.evaluation import auroc, exact, run_restarts
from attractor.experiment.puzzles import LoadedReasoner, as_tensors, load_reasoner
from attractor.files import json_safe, write_json
from attractor.progress import TaskProgress

Figures = dict[str, Any]


def held_out(trained: LoadedReasoner, paths: Sequence[Path], limit: int | None) -> Puzzles:
    """Read what a reasoner is judged on: the split test of a prepared folder, or a csv."""
    if len(paths) != 1:
        raise ConfigError("a reasoner is judged on one set of puzzles; give a prepared folder, or a csv, with --data.")
    (path,) = paths
    if path.suffix == ".csv":
        found = sudoku.read_table(path) if trained.kind == "sudoku" else maze.read_table(path)
    else:
        found = puzzles.read(path, "test")
    if found.kind != trained.kind:
        raise DataError(f"{path}: holds puzzles of the kind {found.kind}; this model learnt {trained.kind}.")
    return found[slice(limit)]


def evaluate_reasoner(
    checkpoint: Path,
    paths: Sequence[Path],
    *,
    depths: Sequence[int],
    breadths: Sequence[int],
    limit: int | None,
    batch_size: int,
    seed: int,
    out: Path | None,
) -> None:
    """Judge, print the table, and write the figures."""
    for name, values in (("depths", depths), ("breadths", breadths)):
        if not values or min(values) < 1 or sorted(set(values)) != list(values):
            raise ConfigError(f"--{name} {' '.join(map(str, values))}: give rising whole numbers from 1 up.")
    trained = load_reasoner(checkpoint)
    trained.model.check_breadth(max(breadths))
    trained.model.to("cuda" if torch.cuda.is_available() else "cpu")
    data = held_out(trained, paths, limit)
    console = Console()
    with TaskProgress() as bars:
        total = max(breadths) * len(data)
        done = 0
        draw = bars.follow("puzzles")

        def advance(num: int) -> None:
            nonlocal done
            done += num
            draw(done, total)

        figures = evaluate_puzzles(
            trained, data, depths=depths, breadths=breadths, batch_size=batch_size, seed=seed, advance=advance
        )
    show(figures, console)
    if out is not None:
        write_json(out, {"checkpoint": str(checkpoint), "seed": seed, "results": json_safe(figures)})


def evaluate_puzzles(
    trained: LoadedReasoner,
    data: Puzzles,
    *,
    depths: Sequence[int],
    breadths: Sequence[int],
    batch_size: int,
    seed: int,
    advance: Callable[[int], None] = lambda num: None,
) -> Figures:
    """Return shares of right answers by breadth and depth, chosen by residual and by majority, and the residual's AUROC."""
    torch.manual_seed(seed)
    questions, truth = as_tensors(data)
    device = next(trained.model.parameters()).device
    starts = run_restarts(
        trained.model,
        questions.to(device),
        depths=depths,
        breadth=max(breadths),
        batch_size=batch_size,
        advance=advance,
    )
    first = exact(starts.answers[0], truth)  # (depths, N)

    def right(answers: Tensor) -> list[float]:
        return [float(share) for share in exact(answers, truth).float().mean(dim=1)]

    figures: Figures = {
        "num_puzzles": len(data),
        "depths": list(depths),
        "breadths": list(breadths),
        "exact_by_residual": [right(starts.lowest_residual(breadth)) for breadth in breadths],
        "exact_by_majority": [right(starts.majority(breadth)) for breadth in breadths],
        "median_residual": [float(r) for r in starts.residual[0].median(dim=1).values],
        "residual_auroc": [auroc(-r, e) for r, e in zip(starts.residual[0], first, strict=True)],
    }
    if trained.kind == "maze":
        figures["valid_and_shortest"] = [
            [
                float(maze.valid_and_shortest(data.questions, found.numpy()).mean())
                for found in starts.lowest_residual(breadth)
            ]
            for breadth in breadths
        ]
    return figures


def show(figures: Figures, console: Console) -> None:
    """Print the table: a row a depth, a column a breadth, and a section for every way of choosing or judging an answer."""
    view = Table(
        title=f"{figures['num_puzzles']:,} puzzles right in every cell, %",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    breadths = [f"{'breadth' * (row == 0)}\n{breadth}" for row, breadth in enumerate(figures["breadths"])]
    for column in ("\nchosen by", "\ndepth", *breadths, "median\nresidual", "residual's\nAUROC"):
        view.add_column(column, justify="right", no_wrap=True)
    sections = {"residual": figures["exact_by_residual"]}
    if max(figures["breadths"]) > 1:
        sections["majority"] = figures["exact_by_majority"]
    if "valid_and_shortest" in figures:
        sections["residual*"] = figures["valid_and_shortest"]
    for name, shares in sections.items():
        for row, depth in enumerate(figures["depths"]):
            known = figures["median_residual"][row], figures["residual_auroc"][row]
            more = (f"{known[0]:.0e}", "–" if known[1] != known[1] else f"{known[1]:.3f}") if name == "residual" else ()
            by_breadth = (f"{100 * of_breadth[row]:.1f}" for of_breadth in shares)
            view.add_row(name if row == 0 else "", str(depth), *by_breadth, *more)
        view.add_section()
    # Whole however narrow the window: a figure that is cut cannot be read.
    width = Measurement.get(console, console.options.update(width=10_000), view).maximum
    Console(width=max(console.width, width)).print(view)
    if "valid_and_shortest" in figures:
        console.print("* any path that is valid and shortest counts, whichever is labelled")
