"""Train a reasoner on puzzles."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
from attractor.objectives import IGNORED, DeepSupervision
from attractor.recipes import PuzzleRecipe, fit_to_puzzles
from attractor.training import PRECISIONS, DistributedContext
from attractor.training import train as run_loop


def as_tensors(data: PuzzleSet) -> tuple[Tensor, Tensor]:
    """Return questions and answers (N, height, width) as int64, as models read them.

    Cells of questions hold their puzzle's name, if it has one; answer cells that do not count are -100.
    """
    questions, answers = (torch.from_numpy(np.array(grids)).long() for grids in (data.questions, data.answers))
    if (offsets := _offsets(data)) is not None:
        questions += torch.from_numpy(offsets)[:, None, None]
    return questions, answers if data.puzzle.ignored is None else answers.masked_fill(
        answers == data.puzzle.ignored, IGNORED
    )


def _offsets(data: PuzzleSet) -> NDArray[np.int64] | None:
    return None if data.names is None else data.num_symbols * data.names.astype(np.int64)


def names_checksum(data: PuzzleSet) -> int:
    """Return a number that tells lists of puzzle names apart."""
    return zlib.crc32("\n".join(data.all_names).encode())


def training_puzzles(recipe: PuzzleRecipe, folder: Path | None = None) -> PuzzleSet:
    """Read the split ``train`` of a folder of puzzles, or generate the puzzles that the recipe describes."""
    if folder is None:
        settings: dict[str, Any] = {"num_puzzles": 0, "seed": 0} | to_dict(recipe.data)
        return PUZZLES[recipe.kind].generate(settings.pop("num_puzzles"), **settings)
    found = puzzles.read(folder, "train")
    if found.kind != recipe.kind:
        raise DataError(f"{folder}: holds puzzles of the kind {found.kind}; this recipe needs {recipe.kind}.")
    return found


def development_puzzles(recipe: PuzzleRecipe, folder: Path | None, train: PuzzleSet) -> PuzzleSet | None:
    """Read the split ``dev`` of a folder, if it has one, or generate puzzles like those of ``train``, and no copies."""
    if folder is None:
        settings = to_dict(recipe.data)
        settings["seed"] += FIRST_DEV_SEED
        return PUZZLES[recipe.kind].generate(num_dev(settings.pop("num_puzzles")), exclude=train, **settings)
    return puzzles.read(folder, "dev") if "dev" in puzzles.read_index(folder)["splits"] else None


def _about(examples: PuzzleSet) -> dict[str, Any]:
    """Return what a checkpoint keeps of its training puzzles."""
    questions, answers = (np.ascontiguousarray(grids).data for grids in (examples.questions, examples.answers))
    return {
        "kind": examples.kind,
        "size": examples.size,
        "num": len(examples),
        **({"names": names_checksum(examples)} if examples.all_names else {}),
        "checksum": zlib.crc32(answers, zlib.crc32(questions)),
    }


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
        recipe,
        num_cells=height * width,
        num_symbols=examples.num_symbols,
        num_classes=examples.num_classes,
        num_names=len(examples.all_names),
    )
    torch.manual_seed(recipe.train.seed)
    distributed = distributed or DistributedContext()
    device = distributed.device
    model = recipe.model.build().to(device)
    objective = DeepSupervision(
        examples.questions,
        examples.answers,
        recipe.supervision,
        init_state=model.init_state,
        augment=examples.puzzle.augment,
        crop=examples.puzzle.crop,
        auxiliary_targets=examples.puzzle.auxiliary_targets,
        offsets=_offsets(examples),
        ignored=examples.puzzle.ignored,
        device=device,
        held_out=None if held_out is None else tuple(part.to(device) for part in as_tensors(held_out)),  # type: ignore[arg-type]
        peak_flops=None
        if recipe.model.cost_depends_on_clues
        else peak_flops(device, PRECISIONS[recipe.train.precision]),
        rank=distributed.rank,
        world_size=distributed.size,
    )
    metadata = {
        "kind": REASONER,
        "puzzles": _about(examples),
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
