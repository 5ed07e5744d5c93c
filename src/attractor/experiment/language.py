"""Train a language model on prepared text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from attractor.config import change, to_dict
from attractor.data.text import PackedRows, Shards, fingerprint, load_tokenizer
from attractor.errors import ConfigError, DataError
from attractor.experiment.device import peak_flops
from attractor.experiment.environment import environment
from attractor.experiment.loading import LoadedLanguageModel
from attractor.files.received import quiet
from attractor.models.language import LanguageModel
from attractor.objectives import NextToken
from attractor.recipes import LanguageRecipe
from attractor.training import PRECISIONS, DistributedContext
from attractor.training import train as run_loop


def train_language(
    recipe: LanguageRecipe,
    data: Path,
    out: Path,
    *,
    start: LoadedLanguageModel | None = None,
    distributed: DistributedContext | None = None,
    **loop: Any,
) -> LoadedLanguageModel:
    """Train ``recipe`` on prepared text and return the trained model. ``transformers`` can load its checkpoints too.

    Parameters
    ----------
    recipe
        The settings. Without ``start``, the vocabulary and the special tokens of the model are replaced by the data's.
    data
        A folder of prepared text.
    start
        The model to start from; ``recipe.model`` may differ from its configuration only in how it is solved.
    loop
        ``callbacks``, ``resume`` and ``should_pause`` of :func:`attractor.training.train`.
    """
    distributed = distributed or DistributedContext()
    shards, tokenizer = Shards(data, "train"), load_tokenizer(data)
    distributed.on_main_process(shards.verify)  # reads all of it, which takes seconds
    if fingerprint(tokenizer) != shards.tokenizer:
        raise DataError(f"{data / 'tokenizer'}: is not the tokenizer of these shards; prepare the text again.")
    if start is None:
        own = {
            "bos_token_id": shards.begin_of_text,
            "eos_token_id": shards.end_of_text,
            "vocab_size": shards.vocab_size,
        }
        recipe = change(recipe, {"model": {**own, "pad_token_id": shards.end_of_text}})
    elif fingerprint(start.tokenizer) != shards.tokenizer:
        raise DataError(
            f"{data}: was not prepared with the tokenizer of the model; "
            "prepare the text with --tokenizer and the folder given to --init."
        )
    torch.manual_seed(recipe.train.seed)
    model: Any = AutoModelForCausalLM.from_config(recipe.model).to(distributed.device)
    if start is not None:
        _copy_weights(start.model, model)
    rows = PackedRows(shards, recipe.text.length, recipe.text.seed)
    config = replace(recipe.train, optimizer=recipe.optimizer, freeze=recipe.freeze)
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
        save_model=save,
        units=model.fsdp_units(),
        distributed=distributed,
        **loop,
    )
    assert isinstance(trained, LanguageModel)
    return LoadedLanguageModel(trained, tokenizer, out)


def _copy_weights(source: Any, model: Any) -> None:
    try:
        model.load_state_dict(source.state_dict())
    except RuntimeError as error:
        old, new = to_dict(source.config), to_dict(model.config)
        changed = ", ".join(
            f"model.{name}={new[name]!r} (was {old.get(name)!r})" for name in new if new[name] != old.get(name)
        )
        raise ConfigError(
            f"{changed}: needs other weights than the checkpoint has; with --init, set only how it is solved."
        ) from error
    model.generation_config = source.generation_config
