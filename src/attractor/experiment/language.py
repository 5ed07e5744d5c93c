"""Where data, model, objective and loop meet: a recipe becomes a trained model, a checkpoint becomes a model again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from attractor.config import change, to_dict
from attractor.data.text import PackedRows, Shards, fingerprint, load_tokenizer
from attractor.errors import CheckpointError, ConfigError, DataError
from attractor.experiment.cost.device import peak_flops
from attractor.experiment.environment import environment
from attractor.experiment.loading import load_language_model, quiet
from attractor.models.language import LanguageModel
from attractor.objectives import NextToken
from attractor.recipes import LanguageRecipe
from attractor.training import PRECISIONS, Callback, DistributedContext
from attractor.training import train as run_loop


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
    should_pause: Callable[[], bool] = lambda: False,
    start: Start | None = None,
    distributed: DistributedContext | None = None,
) -> LanguageModel:
    """Run ``recipe`` on prepared text into ``out`` and return the model. Checkpoints are also folders of ``transformers``.

    With ``start``, weights and special tokens are its own; ``recipe.model`` is then its configuration, solved as one likes.
    """
    distributed = distributed or DistributedContext()
    shards, tokenizer = Shards(data, "train"), load_tokenizer(data)
    distributed.on_main_process(shards.verify)  # all of it: seconds for gigabytes, before a run of hours
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
    model: Any = AutoModelForCausalLM.from_config(recipe.model).to(distributed.device)
    if start is not None:
        _load(model, start.model)
    rows = PackedRows(shards, recipe.text.length, recipe.text.seed)
    config = replace(recipe.train, optimizer=recipe.optimizer)
    peak = peak_flops(distributed.device, PRECISIONS[recipe.train.precision])
    objective = NextToken(rows, recipe.text, peak_flops=peak, rank=distributed.rank, world_size=distributed.size)
    metadata = {
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
        metadata=metadata,
        callbacks=callbacks,
        resume=resume,
        should_pause=should_pause,
        save_model=save,
        units=model.fsdp_units(),
        distributed=distributed,
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
