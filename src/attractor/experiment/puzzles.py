"""Train a reasoner on puzzles."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attractor.config import to_dict
from attractor.data import maze, puzzles, sudoku
from attractor.data.puzzles import Puzzles
from attractor.errors import DataError
from attractor.experiment.cost.device import peak_flops
from attractor.experiment.environment import environment
from attractor.experiment.loading import REASONER, LoadedReasoner
from attractor.models.reasoning import Reasoner
from attractor.objectives import DeepSupervision
from attractor.recipes import MazeDataConfig, PuzzleRecipe, SudokuDataConfig, fit_to_puzzles
from attractor.training import PRECISIONS, Callback, DistributedContext
from attractor.training import train as run_loop

AUGMENT: dict[str, Callable[..., tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {
    "maze": maze.augment,
    "sudoku": sudoku.augment,
}


def as_tensors(data: Puzzles | maze.Mazes) -> tuple[Tensor, Tensor]:
    """Return questions and answers (N, height, width) as int64."""
    return torch.from_numpy(np.array(data.questions)).long(), torch.from_numpy(np.array(data.answers)).long()


def training_mazes(config: MazeDataConfig) -> maze.Mazes:
    """Generate the mazes of a recipe, all different: with paths between corners, and between any two cells."""
    num_corner = round(config.corner_fraction * config.num_mazes)
    num_dfs = round(config.dfs_fraction * num_corner)
    size, seed = config.size, config.seed
    dfs = maze.generate(num_dfs, size, seed=seed, corners=True, dfs=True)
    corner = maze.generate(num_corner - num_dfs, size, seed=seed, corners=True, exclude=dfs)
    seen = maze.concatenate(dfs, corner)
    return maze.concatenate(seen, maze.generate(config.num_mazes - num_corner, size, seed=seed, exclude=seen))


def training_puzzles(recipe: PuzzleRecipe, folder: Path | None = None) -> Puzzles:
    """Read the split ``train`` of a folder of puzzles, or generate the puzzles that the recipe describes."""
    if folder is not None:
        found = puzzles.read(folder, "train")
        if found.kind != recipe.kind:
            raise DataError(f"{folder}: holds puzzles of the kind {found.kind}; this recipe needs {recipe.kind}.")
        return found
    data = recipe.data
    if isinstance(data, SudokuDataConfig):
        return sudoku.generate(data.num_puzzles, size=data.size, clues=data.clues, seed=data.seed)
    mazes = training_mazes(data)
    return Puzzles(kind="maze", questions=mazes.questions, answers=mazes.answers)


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
) -> LoadedReasoner:
    """Train ``recipe`` and return the trained model, with averaged weights.

    Parameters
    ----------
    recipe
        The settings. Symbols, classes and the number of cells of the model are replaced by those of the puzzles.
    out
        The folder to write.
    data
        A folder of puzzles, instead of those that the recipe describes.
    held_out
        Puzzles whose accuracy is logged during training.
    callbacks, resume, should_pause, distributed
        See :func:`attractor.training.train`.
    """
    examples = training_puzzles(recipe, data)
    height, width = examples.questions.shape[1:]
    recipe = fit_to_puzzles(recipe, num_cells=height * width, num_symbols=examples.num_symbols, num_classes=examples.num_classes)
    torch.manual_seed(recipe.train.seed)
    distributed = distributed or DistributedContext()
    device = distributed.device
    model = recipe.model.build().to(device)
    objective = DeepSupervision(
        examples.questions,
        examples.answers,
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
        "kind": REASONER,
        "puzzles": {
            "kind": recipe.kind,
            "size": height,
            "num": len(examples),
            "checksum": zlib.crc32(np.stack([examples.questions, examples.answers]).tobytes()),
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
    return LoadedReasoner(averaged, recipe.kind, height, out)
