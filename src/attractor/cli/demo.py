"""``attractor demo``: train on small mazes, then solve large ones."""

from pathlib import Path
from typing import Any

from rich.table import Table

from attractor.cli.output import make_table, say, show

SHOWN_DEPTHS = (16, 32, 64, 128, 256)


def demo(out: Path = Path("demo"), minutes: float = 4.0, seed: int = 0, overwrite: bool = False) -> None:
    """Train a small Attractor Model on mazes of 16×16, and solve mazes of another kind of up to 31×31.

    Writes a checkpoint, metrics.json, trajectory.png, trajectory.gif, accuracy.png and maze.txt.

    Args:
        out: The folder to write.
        minutes: The time to train. Evaluation takes about one more minute.
        seed: The seed of data, weights and initial states.
        overwrite: Write into a folder that is not empty.
    """
    from attractor.experiment.demo import demo as run

    say(
        f"1. Train a network of 16,968 weights on 1,000 mazes of 16×16 cells with random walls, for {minutes:g} minutes."
    )
    say(
        "2. Solve 700 unseen mazes of another kind, of up to 31×31 cells: larger mazes need more evaluations. About a minute."
    )
    show(_table(run(out, minutes=minutes, seed=seed, overwrite=overwrite)))
    say(
        "Each row is one size. A solve ends when its residual is below 1e-4, or after 1,024 evaluations.",
        f"See how a maze converges: {out / 'trajectory.gif'}; the table as curves: {out / 'accuracy.png'}.",
        "Next:",
        f"  attractor solve {out} {out / 'maze.txt'}      solve that maze; then draw one of your own in a text file",
        "  attractor data sudoku --out sudoku6 --size 6 --clues 10      puzzles for a Sudoku solver; it says how to go on",
    )


def _table(sizes: dict[str, Any]) -> Table:
    """Return exact accuracy by size and depth and at the end, the share that converged, and the accuracy of these, in per cent."""
    columns = ("size", *map(str, SHOWN_DEPTHS), "end", "converged", "of these right", "evaluations")
    title = "unseen mazes solved, in %, after so many evaluations and at the end of each solve"
    table = make_table(columns, title=title, simple=True, padding=(0, 1), collapse_padding=True)
    for name, evaluation in sizes.items():
        by_depth = [f"{100 * point.exact:.1f}" for point in evaluation.points if point.depth in SHOWN_DEPTHS]
        right = f"{100 * evaluation.accuracy_given_converged:.1f}" if evaluation.converged else "–"
        end = (f"{100 * evaluation.exact:.1f}", f"{100 * evaluation.converged:.1f}", right)
        table.add_row(name, *by_depth, *end, f"{evaluation.evaluations:.0f}")
    return table
