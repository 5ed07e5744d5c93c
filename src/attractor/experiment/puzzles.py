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

from attractor.config import from_dict, to_dict
from attractor.data import maze, puzzles, sudoku
from attractor.data.puzzles import Puzzles
from attractor.errors import CheckpointError, ConfigError, DataError
from attractor.experiment.cost.device import peak_flops
from attractor.experiment.environment import environment
from attractor.models.reasoning import Reasoner
from attractor.objectives import DeepSupervision
from attractor.recipes import MazeDataConfig, PuzzleRecipe, SudokuDataConfig, fitted
from attractor.training import PRECISIONS, Callback, DistributedContext, find_checkpoint, load_model, read_run
from attractor.training import train as run_loop

KIND = "reasoner"
AUGMENT: dict[str, Callable[..., tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {
    "maze": maze.augment,
    "sudoku": sudoku.augment,
}


def as_tensors(data: Puzzles | maze.Mazes) -> tuple[Tensor, Tensor]:
    """Return questions and answers (N, height, width) as int64."""
    return torch.from_numpy(np.array(data.questions)).long(), torch.from_numpy(np.array(data.answers)).long()


def training_mazes(config: MazeDataConfig) -> maze.Mazes:
    """Draw the mazes to learn from, none of them twice: with long paths between corners, and between any two rooms."""
    num_corner = round(config.corner_fraction * config.num_mazes)
    num_winding = round(config.dfs_fraction * num_corner)
    size, seed = config.size, config.seed
    dfs = maze.generate(num_winding, size, seed=seed, corners=True, dfs=True)
    corner = maze.generate(num_corner - num_winding, size, seed=seed, corners=True, exclude=dfs)
    seen = maze.concatenate(dfs, corner)
    return maze.concatenate(seen, maze.generate(config.num_mazes - num_corner, size, seed=seed, exclude=seen))


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
    should_pause: Callable[[], bool] = lambda: False,
    distributed: DistributedContext | None = None,
) -> Reasoner:
    """Run ``recipe`` into ``out`` and return the model with averaged weights. ``held_out`` is for the log alone.

    Symbols, classes and a mixer's cells become those of the puzzles.
    """
    learnt = training_puzzles(recipe, data)
    height, width = learnt.questions.shape[1:]
    recipe = fitted(recipe, num_cells=height * width, num_symbols=learnt.num_symbols, num_classes=learnt.num_classes)
    torch.manual_seed(recipe.train.seed)
    distributed = distributed or DistributedContext()
    device = distributed.device
    model = recipe.model.build().to(device)
    objective = DeepSupervision(
        learnt.questions,
        learnt.answers,
        recipe.supervision,
        init_state=model.init_state,
        augment=AUGMENT[recipe.kind],
        device=device,
        held_out=None if held_out is None else tuple(part.to(device) for part in as_tensors(held_out)),  # type: ignore[arg-type]
        peak_flops=peak_flops(device, PRECISIONS[recipe.train.precision]),
        rank=distributed.rank,
        world_size=distributed.size,
    )
    metadata = {
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
        metadata=metadata,
        callbacks=callbacks,
        resume=resume,
        should_pause=should_pause,
        distributed=distributed,
    )
    assert isinstance(averaged, Reasoner)
    return averaged


@dataclass(frozen=True)
class LoadedReasoner:
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


def load_reasoner(path: Path, kind: str | None = None) -> LoadedReasoner:
    """Build the model of a checkpoint, or of the newest one in a run's folder, in evaluation mode; of that ``kind``, if given."""
    checkpoint = find_checkpoint(path)
    described = read_run(checkpoint, KIND)
    try:
        recipe = from_dict(PuzzleRecipe, described["recipe"])
        about: dict[str, Any] = described["puzzles"]
        trained = LoadedReasoner(recipe.model.build(), about["kind"], about["size"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint / 'run.json'}: cannot be used ({error}).") from error
    if kind is not None and trained.kind != kind:
        raise CheckpointError(f"{checkpoint}: learnt puzzles of the kind {trained.kind}, not {kind}; give another one.")
    load_model(checkpoint, trained.model)
    trained.model.eval()
    return trained
