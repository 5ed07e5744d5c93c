"""``attractor demo``: train on small mazes, then solve large ones."""

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

SHOWN_DEPTHS = (16, 32, 64, 128, 256)


def demo(out: Path = Path("demo"), minutes: float = 4.0, seed: int = 0, overwrite: bool = False) -> None:
    """Train a small Attractor Model on 11×11 mazes, and solve mazes up to eight times their area.

    Writes a checkpoint, metrics.json, trajectory.png, trajectory.gif, accuracy.png and maze.txt.

    Args:
        out: The folder to write.
        minutes: The time to train. Evaluation takes about one more minute.
        seed: The seed of data, weights and initial states.
        overwrite: Write into a folder that is not empty.
    """
    from attractor.experiment.demo import demo as run

    console = Console()
    console.print(f"Training on 11×11 mazes for {minutes:g} minutes …")
    console.print(_table(run(out, minutes=minutes, seed=seed, overwrite=overwrite)))
    console.print(
        f"It was trained on 11×11 only. In {out}/: trajectory.gif, trajectory.png, accuracy.png, metrics.json.\n"
        f"Next: attractor solve {out} {out / 'maze.txt'}   (then draw a maze of your own)\n"
        f"      attractor train maze --set model.update.width=48   (attractor train --help lists more)",
        soft_wrap=True,
    )


def _table(sizes: dict[str, Any]) -> Table:
    """Return exact accuracy by size and depth and at the end, the share that converged, and the accuracy of these, in per cent."""
    table = Table(
        title="unseen mazes right in every cell, %; converged, %; right if converged, %",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("size", *map(str, SHOWN_DEPTHS), "end", "converged", "right", "steps"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, evaluation in sizes.items():
        by_depth = [f"{100 * point.exact:.1f}" for point in evaluation.points if point.depth in SHOWN_DEPTHS]
        right = f"{100 * evaluation.accuracy_given_converged:.1f}" if evaluation.converged else "–"
        end = (f"{100 * evaluation.exact:.1f}", f"{100 * evaluation.converged:.1f}", right)
        table.add_row(name, *by_depth, *end, f"{evaluation.evaluations:.0f}")
    return table
