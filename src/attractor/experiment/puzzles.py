"""Train a reasoner on puzzles."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attractor.config import to_dict
from attractor.data import PUZZLES, PuzzleSet, puzzles
from attractor.data.puzzles import FIRST_DEV_SEED, num_dev
from attractor.errors import DataError
from attractor.experiment.device import peak_flops
from attractor.experiment.environment import environment
from attractor.experiment.loading import REASONER
from attractor.experiment.solve import LoadedReasoner
from attractor.models.reasoning import Reasoner
from attractor.nn import SymmetricUpdateConfig
from attractor.objectives import DeepSupervision
from attractor.recipes import PuzzleRecipe, fit_to_puzzles
from attractor.training import PRECISIONS, DistributedContext
from attractor.training import train as run_loop


def as_tensors(data: PuzzleSet) -> tuple[Tensor, Tensor]:
    """Return questions and answers (N, height, width) as int64."""
    return torch.from_numpy(np.array(data.questions)).long(), torch.from_numpy(np.array(data.answers)).long()


def training_puzzles(recipe: PuzzleRecipe, folder: Path | None = None) -> PuzzleSet:
    """Read the split ``train`` of a folder of puzzles, or generate the puzzles that the recipe describes."""
    if folder is None:
        settings = to_dict(recipe.data)
        return PUZZLES[recipe.kind].generate(settings.pop("num_puzzles"), **settings)
    found = puzzles.read(folder, "train")
    if found.kind != recipe.kind:
        raise DataError(f"{folder}: holds puzzles of the kind {found.kind}; this recipe needs {recipe.kind}.")
    return found


def development_puzzles(recipe: PuzzleRecipe, folder: Path | None, train: PuzzleSet) -> PuzzleSet | None:
    """Read the split ``dev`` of a folder, if it has one, or generate puzzles like those of ``train``, and no copies."""
    if folder is None:
        settings = to_dict(recipe.data) | {"seed": FIRST_DEV_SEED + recipe.data.seed}
        return PUZZLES[recipe.kind].generate(num_dev(settings.pop("num_puzzles")), exclude=train, **settings)
    return puzzles.read(folder, "dev") if "dev" in puzzles.read_index(folder)["splits"] else None


def train_reasoner(
    recipe: PuzzleRecipe,
    out: Path,
    *,
    data: Path | None = None,
    held_out: PuzzleSet | None = None,
    distributed: DistributedContext | None = None,
    **loop: Any,
) -> LoadedReasoner:
    """Train ``recipe`` and return the trained model, with averaged weights.

    Parameters
    ----------
    recipe
        The settings. Symbols, classes and the number of cells of the model are replaced by those of the puzzles.
    data
        A folder of puzzles, instead of generated ones.
    held_out
        Puzzles whose accuracy is logged during training; by default :func:`development_puzzles`.
    loop
        ``callbacks``, ``resume`` and ``should_pause`` of :func:`attractor.training.train`.
    """
    examples = training_puzzles(recipe, data)
    held_out = development_puzzles(recipe, data, examples) if held_out is None else held_out
    height, width = examples.questions.shape[1:]
    recipe = fit_to_puzzles(
        recipe, num_cells=height * width, num_symbols=examples.num_symbols, num_classes=examples.num_classes
    )
    torch.manual_seed(recipe.train.seed)
    distributed = distributed or DistributedContext()
    device = distributed.device
    model = recipe.model.build().to(device)
    symmetric = isinstance(getattr(recipe.model, "update", None), SymmetricUpdateConfig)
    objective = DeepSupervision(
        examples.questions,
        examples.answers,
        recipe.supervision,
        init_state=model.init_state,
        augment=examples.puzzle.augment,
        auxiliary=examples.puzzle.auxiliary if getattr(recipe.model, "num_auxiliary", 0) else None,
        device=device,
        held_out=None if held_out is None else tuple(part.to(device) for part in as_tensors(held_out)),  # type: ignore[arg-type]
        # The operations of a symmetric update depend on the clues.
        peak_flops=None if symmetric else peak_flops(device, PRECISIONS[recipe.train.precision]),
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
        distributed=distributed,
        **loop,
    )
    assert isinstance(averaged, Reasoner)
    return LoadedReasoner(averaged, examples.puzzle, height, out)
