"""The demonstration: train on small mazes, then solve large ones with more evaluations, and draw it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from attractor.data import maze
from attractor.data.puzzle import Advance
from attractor.data.puzzles import FIRST_DEV_SEED
from attractor.errors import ConfigError
from attractor.evaluation import DepthEvaluation, evaluate_depths, trajectory
from attractor.experiment.device import one_thread
from attractor.experiment.puzzles import as_tensors, train_reasoner
from attractor.experiment.solve import animation_depths
from attractor.files import check_output_dir, write_json
from attractor.models.reasoning import Reasoner
from attractor.plots import plot_accuracy, plot_trajectory
from attractor.progress import TaskProgress, TrainingProgress
from attractor.recipes import maze as maze_recipe

SIZES = {11: 200, 15: 200, 21: 200, 31: 100}  # the number of unseen perfect mazes of each size
DEPTHS = (4, 8, 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 1024)
NUM_CANDIDATES = 8  # development mazes; the first whose solve converges to a right answer is drawn
TOLERANCE = 1e-4  # the relative residual at which a maze has converged
TEST_SEED = 1_000_000


def demo(
    out: str | Path = "demo",
    *,
    minutes: float = 4.0,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, DepthEvaluation]:
    """Train a small attractor model on mazes of random walls, 16×16, and evaluate it on perfect mazes of up to 31×31.

    Writes a checkpoint, ``metrics.json``, ``trajectory.png``, ``trajectory.gif``, ``accuracy.png`` and ``maze.txt``.
    Training takes ``minutes`` of one core, evaluation about one more. Returns the evaluation of each size, such as ``"31×31"``.
    """
    if not minutes > 0:
        raise ConfigError(f"minutes={minutes:g}: give a positive number.")
    folder = Path(out)
    check_output_dir(folder, overwrite=overwrite)
    recipe = maze_recipe(minutes=minutes, seed=seed)
    with one_thread():
        with TrainingProgress("training", enabled=progress) as bar:
            model = train_reasoner(recipe, folder, callbacks=[bar]).model
        torch.manual_seed(seed)
        with TaskProgress(enabled=progress) as bars:
            count = bars.count("unseen mazes", sum(SIZES.values()))
            sizes = evaluate_sizes(model, advance=count)
        draw(model, sizes, folder)
    metrics: dict[str, Any] = {
        "minutes": minutes,
        "seed": seed,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "sizes": {name: asdict(evaluation) for name, evaluation in sizes.items()},
    }
    write_json(folder / "metrics.json", metrics)
    return sizes


def evaluate_sizes(model: Reasoner, *, advance: Advance = lambda num: None) -> dict[str, DepthEvaluation]:
    """Evaluate perfect mazes of every size."""
    evaluations, device = {}, next(model.parameters()).device
    for size, num in SIZES.items():
        questions, answers = as_tensors(maze.generate(num, size, seed=TEST_SEED + size))
        evaluations[f"{size}×{size}"] = evaluate_depths(
            model, questions.to(device), answers, depths=DEPTHS, tolerance=TOLERANCE, advance=advance
        )
    return evaluations


def draw(model: Reasoner, sizes: dict[str, DepthEvaluation], out: Path) -> None:
    """Draw the trajectory of one of the largest mazes and the accuracy by depth, and write that maze as text.

    The maze is the first of ``NUM_CANDIDATES`` that the model solves to the tolerance, or the first if there is none.
    """
    largest = maze.generate(NUM_CANDIDATES, max(SIZES), seed=FIRST_DEV_SEED, corners=True)
    questions, answers = as_tensors(largest)
    questions = questions.to(next(model.parameters()).device)
    output = model.solve(questions, tolerance=TOLERANCE, max_evaluations=DEPTHS[-1])
    is_right = (output.logits.argmax(dim=-1).cpu() == answers).flatten(1).all(dim=1)
    index = int((is_right & (output.solution.residual.cpu() < TOLERANCE)).int().argmax())
    maze.write(out / "maze.txt", [largest.questions[index]])
    assert output.init_state is not None
    start, depths = output.init_state[index, None], animation_depths(DEPTHS[-1])
    frames, residuals = trajectory(model, questions[index], depths, init_state=start, tolerance=TOLERANCE)
    strip, animation = out / "trajectory.png", out / "trajectory.gif"
    plot_trajectory(frames, depths[: len(frames)], residuals, strip=strip, animation=animation, tolerance=TOLERANCE)
    plot_accuracy({name: evaluation.points for name, evaluation in sizes.items()}, out / "accuracy.png")
