"""``attractor demo``: learn small mazes, then solve large ones by iterating to rest, and show it."""

import dataclasses
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from attractor.data import PuzzleSet, maze
from attractor.errors import ConfigError
from attractor.evaluation import DepthEvaluation, evaluate_depths, trajectory
from attractor.experiment.puzzles import as_tensors, train_reasoner, training_puzzles
from attractor.files import check_output_dir, write_json
from attractor.models.reasoning import Reasoner
from attractor.plots import plot_accuracy, plot_trajectory
from attractor.progress import TrainingProgress
from attractor.recipes import MazeDataConfig
from attractor.recipes import maze as maze_recipe

SIZES = {11: 200, 15: 200, 21: 200, 31: 100}  # size of unseen mazes, and how many
DEPTHS = (4, 8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
SHOWN = (16, 32, 64, 128, 256)
TOLERANCE = 1e-4  # relative residual at which a maze is at rest
TEST_SEED = 1_000_000  # far from the training seeds; equal mazes are excluded besides


def demo(out: Path = Path("demo"), minutes: float = 4.0, seed: int = 0, overwrite: bool = False) -> None:
    """Train a small Attractor Model on 11x11 mazes and watch it solve mazes eight times their area.

    Writes a checkpoint, metrics.json, settling.png, settling.gif, curves.png and maze.txt.

    Args:
        out: Folder to write.
        minutes: Training time; evaluation takes about one more.
        seed: Of data, weights and starts.
        overwrite: Write into a folder that is not empty.
    """
    if not minutes > 0:
        raise ConfigError(f"--minutes {minutes:g}: give a positive number.")
    check_output_dir(out, overwrite=overwrite)
    console = Console()
    recipe = maze_recipe(minutes=minutes, seed=seed)
    assert isinstance(recipe.data, MazeDataConfig)
    size = recipe.data.size
    console.print(f"Learning {recipe.data.num_puzzles} mazes of {size}×{size} for {minutes:g} minutes …")
    with TrainingProgress("training", console) as progress:
        model = train_reasoner(recipe, out, callbacks=[progress])

    torch.manual_seed(seed)
    judged = judge_sizes(model, training_puzzles(recipe), console)
    write_pictures(model, judged, out)
    metrics = {
        "minutes": minutes,
        "seed": seed,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "sizes": {name: dataclasses.asdict(judgement) for name, judgement in judged.items()},
    }
    write_json(out / "metrics.json", metrics)
    console.print(table(judged))
    console.print(
        f"It learnt on {size}×{size} alone. In {out}/: settling.gif, settling.png, curves.png, metrics.json.\n"
        f"Next: attractor solve {out} {out / 'maze.txt'}   (then draw a maze of your own)\n"
        f"      attractor train maze --set model.update.width=48   (change anything; --help says what)",
        soft_wrap=True,
    )


def judge_sizes(model: Reasoner, seen: PuzzleSet, console: Console) -> dict[str, DepthEvaluation]:
    """Judge unseen mazes of every size."""
    judged, device = {}, next(model.parameters()).device
    with Bar(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("judging unseen mazes", total=sum(SIZES.values()))
        for size, num in SIZES.items():
            exclude = seen if size == seen.questions.shape[1] else None
            questions, answers = as_tensors(maze.generate(num, size, seed=TEST_SEED + size, exclude=exclude))
            judged[f"{size}×{size}"] = evaluate_depths(
                model,
                questions.to(device),
                answers,
                depths=DEPTHS,
                tolerance=TOLERANCE,
                advance=lambda n: bar.advance(task, n),
            )
    return judged


def write_pictures(model: Reasoner, judged: dict[str, DepthEvaluation], out: Path) -> None:
    """Write the largest maze settling, the curves, and that maze as text."""
    largest = maze.generate(1, max(SIZES), seed=TEST_SEED, corners=True)
    maze.write(out / "maze.txt", list(largest.questions))
    depths = [*range(1, 33), *range(34, 129, 2), *range(132, 257, 4)]
    question = as_tensors(largest)[0][0].to(next(model.parameters()).device)
    frames, residuals = trajectory(model, question, depths, tolerance=TOLERANCE)
    plot_trajectory(
        frames, depths[: len(frames)], residuals, strip=out / "settling.png", animation=out / "settling.gif"
    )
    plot_accuracy({name: judgement.points for name, judgement in judged.items()}, out / "curves.png")


def table(judged: dict[str, DepthEvaluation]) -> Table:
    """Exact accuracy in per cent by size and depth and in the end, the share that came to rest, and how much of that is right."""
    view = Table(
        title="unseen mazes solved exactly, %; at rest, %; of those right",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("size", *map(str, SHOWN), "end", "rest", "right", "steps"):
        view.add_column(column, justify="right", no_wrap=True)
    for name, judgement in judged.items():
        by_depth = [f"{100 * p.exact:.1f}" for p in judgement.points if p.depth in SHOWN]
        right = f"{100 * judgement.accuracy_given_converged:.1f}" if judgement.converged else "–"
        end = [
            f"{100 * judgement.exact:.1f}",
            f"{100 * judgement.converged:.1f}",
            right,
            f"{judgement.evaluations:.0f}",
        ]
        view.add_row(name, *by_depth, *end)
    return view
