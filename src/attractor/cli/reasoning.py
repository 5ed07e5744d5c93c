"""Where puzzles, reasoners and the loop meet: a recipe becomes a trained reasoner, a checkpoint becomes a reasoner again."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attractor.cli.runs import environment
from attractor.config import from_dict, to_dict
from attractor.data import mazes, puzzles, sudoku
from attractor.data.puzzles import Puzzles
from attractor.errors import CheckpointError, ConfigError, DataError
from attractor.models.reasoning import Reasoner
from attractor.recipes import MazeDataConfig, PuzzleRecipe, SudokuDataConfig, fitted
from attractor.train import (
    PRECISIONS,
    Callback,
    DeepSupervision,
    World,
    find_checkpoint,
    load_model,
    peak_flops,
    read_run,
)
from attractor.train import train as run_loop

KIND = "reasoner"
AUGMENT: dict[str, Callable[..., tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {
    "maze": mazes.augment,
    "sudoku": sudoku.augment,
}


def as_tensors(data: Puzzles | mazes.Mazes) -> tuple[Tensor, Tensor]:
    """Return questions and answers (N, height, width) as int64."""
    return torch.from_numpy(np.array(data.questions)).long(), torch.from_numpy(np.array(data.answers)).long()


def training_mazes(config: MazeDataConfig) -> mazes.Mazes:
    """Draw the mazes to learn from, none of them twice: with long paths between corners, and between any two rooms."""
    num_corner = round(config.corner_share * config.num_mazes)
    num_winding = round(config.winding_share * num_corner)
    size, seed = config.size, config.seed
    winding = mazes.generate(num_winding, size, seed=seed, corners=True, winding=True)
    corner = mazes.generate(num_corner - num_winding, size, seed=seed, corners=True, exclude=winding)
    seen = mazes.concatenate(winding, corner)
    return mazes.concatenate(seen, mazes.generate(config.num_mazes - num_corner, size, seed=seed, exclude=seen))


def training_puzzles(recipe: PuzzleRecipe, folder: Path | None = None) -> Puzzles:
    """Read the split train of a folder of puzzles, or draw what the recipe says."""
    if folder is not None:
        found = puzzles.read(folder, "train")
        if found.kind != recipe.kind:
            raise DataError(f"{folder}: holds puzzles of the kind {found.kind}; this recipe is about {recipe.kind}.")
        return found
    data = recipe.data
    if isinstance(data, SudokuDataConfig):
        return sudoku.generate(data.num_puzzles, size=data.size, clues=data.clues, seed=data.seed)
    drawn = training_mazes(data)
    return Puzzles(kind="maze", questions=drawn.questions, answers=drawn.answers)


def train_reasoner(
    recipe: PuzzleRecipe,
    out: Path,
    *,
    data: Path | None = None,
    held_out: Puzzles | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    pause: Callable[[], bool] = lambda: False,
    world: World | None = None,
) -> Reasoner:
    """Run ``recipe`` into ``out`` and return the model with averaged weights. ``held_out`` is for the log alone.

    Symbols, classes and a mixer's cells become those of the puzzles.
    """
    learnt = training_puzzles(recipe, data)
    height, width = learnt.questions.shape[1:]
    recipe = fitted(recipe, num_cells=height * width, num_symbols=learnt.num_symbols, num_classes=learnt.num_classes)
    torch.manual_seed(recipe.train.seed)
    world = world or World()
    device = world.device
    model = recipe.model.build().to(device)
    objective = DeepSupervision(
        learnt.questions,
        learnt.answers,
        recipe.supervision,
        start=model.start,
        augment=AUGMENT[recipe.kind],
        device=device,
        held_out=None if held_out is None else tuple(part.to(device) for part in as_tensors(held_out)),  # type: ignore[arg-type]
        peak_flops=peak_flops(device, PRECISIONS[recipe.train.precision]),
        world=world,
    )
    describe = {
        "kind": KIND,
        "puzzles": {
            "kind": recipe.kind,
            "size": height,
            "num": len(learnt),
            "checksum": zlib.crc32(np.stack([learnt.questions, learnt.answers]).tobytes()),
        },
        "recipe": to_dict(recipe),
        "environment": environment(),
    }
    averaged = run_loop(
        model,
        objective,
        recipe.train,
        out=out,
        describe=describe,
        callbacks=callbacks,
        resume=resume,
        pause=pause,
        world=world,
    )
    assert isinstance(averaged, Reasoner)
    return averaged


@dataclass(frozen=True)
class Trained:
    """A reasoner of a checkpoint, what kind of puzzles it learnt, and of what size."""

    model: Reasoner
    kind: str
    size: int


def is_reasoner(path: Path) -> bool:
    """Tell whether a checkpoint's folder, or a run's, holds a reasoner of ours."""
    try:
        return bool(read_run(find_checkpoint(path)).get("kind") == KIND)
    except CheckpointError:
        return False


def load_reasoner(path: Path, kind: str | None = None) -> Trained:
    """Build the model of a checkpoint, or of the newest one in a run's folder, in evaluation mode; of that ``kind``, if given."""
    checkpoint = find_checkpoint(path)
    described = read_run(checkpoint, KIND)
    try:
        recipe = from_dict(PuzzleRecipe, described["recipe"])
        about: dict[str, Any] = described["puzzles"]
        trained = Trained(recipe.model.build(), about["kind"], about["size"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint / 'run.json'}: cannot be used ({error}).") from error
    if kind is not None and trained.kind != kind:
        raise CheckpointError(f"{checkpoint}: learnt puzzles of the kind {trained.kind}, not {kind}; give another one.")
    load_model(checkpoint, trained.model)
    trained.model.eval()
    return trained
