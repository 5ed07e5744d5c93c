"""Where data, model, objective and loop meet: a recipe becomes a trained model, a checkpoint becomes a model again."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attractor.config import from_dict, to_dict
from attractor.data import mazes
from attractor.errors import CheckpointError, ConfigError
from attractor.models.reasoning import AttractorReasoner, AttractorReasonerConfig
from attractor.recipes import MazeDataConfig, MazeRecipe
from attractor.train import Callback, DeepSupervision, find_checkpoint, load_model, read_run
from attractor.train import train as run_loop

KIND = "maze-reasoner"


def claim(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse an output folder that holds something already, unless told what to do with it."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder with --out.")
    if out.exists() and any(out.iterdir()) and not (resume or overwrite):
        raise ConfigError(f"{out}: this folder is in use; choose another with --out, or say --overwrite.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out.") from error
    if not os.access(out, os.W_OK):
        raise ConfigError(f"{out}: cannot be written; choose another folder with --out.")
    if overwrite:  # an older run's checkpoints must not pass for this one's
        for old in [*out.glob("step-*"), *out.glob(".part-*")]:
            shutil.rmtree(old)


def as_tensors(data: mazes.Mazes) -> tuple[Tensor, Tensor]:
    """Return questions and answers (N, height, width) as int64."""
    return torch.from_numpy(data.questions).long(), torch.from_numpy(data.answers).long()


def training_mazes(config: MazeDataConfig) -> mazes.Mazes:
    """Draw the mazes to learn from: some with long paths between corners, the others between any two rooms."""
    num_corner = round(config.corner_share * config.num_mazes)
    long = mazes.generate(num_corner, config.size, seed=config.seed, corners=True)
    other = mazes.generate(config.num_mazes - num_corner, config.size, seed=config.seed, exclude=long)
    return mazes.Mazes(
        questions=np.concatenate([long.questions, other.questions]),
        answers=np.concatenate([long.answers, other.answers]),
    )


def train_mazes(
    recipe: MazeRecipe, out: Path, *, callbacks: Sequence[Callback] = (), resume: bool = False
) -> AttractorReasoner:
    """Run ``recipe`` into ``out`` and return the model with averaged weights."""
    torch.manual_seed(recipe.train.seed)
    questions, answers = as_tensors(training_mazes(recipe.data))
    model = AttractorReasoner(recipe.model)
    objective = DeepSupervision(questions, answers, recipe.supervision, start=model.start, augment=_augment)
    describe = {"kind": KIND, "recipe": to_dict(recipe)}
    averaged = run_loop(model, objective, recipe.train, out=out, describe=describe, callbacks=callbacks, resume=resume)
    assert isinstance(averaged, AttractorReasoner)
    return averaged


def load_reasoner(path: Path) -> AttractorReasoner:
    """Build the model of a checkpoint, or of the newest one in a run's folder, in evaluation mode."""
    checkpoint = find_checkpoint(path)
    described = read_run(checkpoint, KIND)
    try:
        model = AttractorReasoner(from_dict(AttractorReasonerConfig, described["recipe"]["model"]))
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint / 'run.json'}: cannot be used ({error}).") from error
    load_model(checkpoint, model)
    return model.eval()


def _augment(questions: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    # Seeded from torch's generator, so that a checkpoint of that one state is enough to resume exactly.
    rng = np.random.default_rng(int(torch.randint(2**62, ())))
    q, a = mazes.augment(questions.numpy(), answers.numpy(), rng)
    return torch.from_numpy(q), torch.from_numpy(a)
