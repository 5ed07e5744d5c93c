"""``attractor demo``: learn small mazes, then solve large ones by iterating to rest, and show it."""

import dataclasses
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table

from attractor.cli.reasoning import as_tensors, train_reasoner, training_mazes
from attractor.cli.runs import claim, write_json
from attractor.data import mazes
from attractor.errors import ConfigError
from attractor.evaluate import Judgement, draw_curves, draw_settling, judge, settling
from attractor.models.reasoning import Reasoner
from attractor.recipes import MazeDataConfig, maze
from attractor.train import Progress

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
    claim(out, overwrite=overwrite)
    console = Console()
    recipe = maze(minutes=minutes, seed=seed)
    assert isinstance(recipe.data, MazeDataConfig)
    size = recipe.data.size
    console.print(f"Learning {recipe.data.num_mazes} mazes of {size}×{size} for {minutes:g} minutes …")
    with Progress("training", console) as progress:
        model = train_reasoner(recipe, out, callbacks=[progress])

    torch.manual_seed(seed)
    judged = judge_sizes(model, training_mazes(recipe.data), console)
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


def judge_sizes(model: Reasoner, seen: mazes.Mazes, console: Console) -> dict[str, Judgement]:
    """Judge unseen mazes of every size."""
    judged, device = {}, next(model.parameters()).device
    with Bar(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("judging unseen mazes", total=sum(SIZES.values()))
        for size, num in SIZES.items():
            exclude = seen if size == seen.questions.shape[1] else None
            questions, answers = as_tensors(mazes.generate(num, size, seed=TEST_SEED + size, exclude=exclude))
            judged[f"{size}×{size}"] = judge(
                model,
                questions.to(device),
                answers,
                depths=DEPTHS,
                tolerance=TOLERANCE,
                advance=lambda n: bar.advance(task, n),
            )
    return judged


def write_pictures(model: Reasoner, judged: dict[str, Judgement], out: Path) -> None:
    """Write the largest maze settling, the curves, and that maze as text."""
    largest = mazes.generate(1, max(SIZES), seed=TEST_SEED, corners=True)
    mazes.write(out / "maze.txt", list(largest.questions))
    depths = [*range(1, 33), *range(34, 129, 2), *range(132, 257, 4)]
    question = as_tensors(largest)[0][0].to(next(model.parameters()).device)
    frames, residuals = settling(model, question, depths, tolerance=TOLERANCE)
    draw_settling(frames, depths[: len(frames)], residuals, strip=out / "settling.png", animation=out / "settling.gif")
    draw_curves({name: judgement.points for name, judgement in judged.items()}, out / "curves.png")


def table(judged: dict[str, Judgement]) -> Table:
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
        right = f"{100 * judgement.exact_of_settled:.1f}" if judgement.settled else "–"
        end = [f"{100 * judgement.exact:.1f}", f"{100 * judgement.settled:.1f}", right, f"{judgement.evaluations:.0f}"]
        view.add_row(name, *by_depth, *end)
    return view
