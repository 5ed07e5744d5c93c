"""Where data, model, objective and loop meet: a recipe becomes a trained model, a checkpoint becomes a model again."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

import attractor
from attractor.cli.language import load_language_model, quiet
from attractor.config import change, to_dict
from attractor.data.text import PackedRows, Shards, fingerprint, load_tokenizer
from attractor.errors import CheckpointError, ConfigError, DataError
from attractor.models.language import LanguageModel
from attractor.recipes import LanguageRecipe
from attractor.train import (
    PRECISIONS,
    Callback,
    NextToken,
    World,
    peak_flops,
)
from attractor.train import train as run_loop


def claim(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse an output folder that holds something already, unless told what to do with it. Nothing is touched, nor made."""
    if resume and overwrite:
        raise ConfigError("--resume continues what is in the folder and --overwrite replaces it; give one of them.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder with --out.")
    if out.exists() and any(out.iterdir()) and not (resume or overwrite):
        raise ConfigError(f"{out}: this folder is in use; choose another with --out, or say --overwrite.")
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{out}: cannot be written; choose another folder with --out.")


def write_json(file: Path, data: dict[str, Any]) -> None:
    """Write beside the place and rename into it."""
    part = file.with_name(f".{file.name}.part")
    try:
        part.write_text(json.dumps(data, indent=2) + "\n")
        os.replace(part, file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror}); choose another place.") from error


@dataclass(frozen=True)
class Start:
    """A model to start from, and the tokenizer it was trained with."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase


def load_start(path: Path) -> Start:
    """Load what ``attractor train --init`` names: a checkpoint of one of our language models."""
    model, tokenizer = load_language_model(path)
    if not isinstance(model, LanguageModel):
        raise CheckpointError(
            f"{path}: holds a {type(model).__name__}; make a model to train of it with attractor retrofit."
        )
    return Start(model, tokenizer)


def train_language(
    recipe: LanguageRecipe,
    data: Path,
    out: Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    pause: Callable[[], bool] = lambda: False,
    start: Start | None = None,
    world: World | None = None,
) -> LanguageModel:
    """Run ``recipe`` on prepared text into ``out`` and return the model. Checkpoints are also folders of ``transformers``.

    With ``start``, weights and special tokens are its own; ``recipe.model`` is then its configuration, solved as one likes.
    """
    world = world or World()
    shards, tokenizer = Shards(data, "train"), load_tokenizer(data)
    world.by_main(shards.verify)  # all of it: seconds for gigabytes, before a run of hours
    if fingerprint(tokenizer) != shards.tokenizer:
        raise DataError(f"{data / 'tokenizer'}: is not the tokenizer of these shards; prepare the text again.")
    if start is None:
        own = {"bos_token_id": shards.end_of_text, "eos_token_id": shards.end_of_text, "vocab_size": shards.vocab_size}
        recipe = change(recipe, {"model": {**own, "pad_token_id": shards.end_of_text}})
    elif fingerprint(start.tokenizer) != shards.tokenizer:
        raise DataError(
            f"{data}: was prepared with another tokenizer than the model's; "
            "prepare the text with --tokenizer and the folder given to --init."
        )
    torch.manual_seed(recipe.train.seed)
    model: Any = AutoModelForCausalLM.from_config(recipe.model).to(world.device)
    if start is not None:
        _load(model, start.model)
    rows = PackedRows(shards, recipe.text.length, recipe.text.seed)
    config = replace(recipe.train, optimizer=recipe.optimizer)
    peak = peak_flops(world.device, PRECISIONS[recipe.train.precision])
    objective = NextToken(rows, recipe.text, peak_flops=peak, world=world)
    describe = {
        "kind": "language",
        "recipe": to_dict(recipe),
        "text": {"tokenizer": shards.tokenizer, "num_tokens": shards.num_tokens},
        "environment": environment(),
    }

    def save(weights: dict[str, Tensor], folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder, state_dict=weights)
            tokenizer.save_pretrained(folder)

    trained = run_loop(
        model,
        objective,
        config,
        out=out,
        describe=describe,
        callbacks=callbacks,
        resume=resume,
        pause=pause,
        save_model=save,
        units=model.weight_units(),
        world=world,
    )
    assert isinstance(trained, LanguageModel)
    return trained


def _load(model: LanguageModel, start: LanguageModel) -> None:
    try:
        model.load_state_dict(start.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            "settings of the model ask for other weights than the checkpoint's; of those with --init, set only how it is solved."
        ) from error
    model.generation_config = start.generation_config


def environment() -> dict[str, Any]:
    """Return versions, device and, in a checkout, the commit."""
    run = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "attractor": attractor.__version__,
        "commit": run.stdout.strip() or None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def finite(value: Any) -> Any:
    """Return the figures with null for what no JSON number can say."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
