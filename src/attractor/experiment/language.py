"""Train a language model on prepared text."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from attractor.config import change, to_dict
from attractor.data.text import ConversationRows, PackedRows, Shards, end_of_turn, fingerprint, load_tokenizer
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
        A folder of prepared text, or a file of conversations for the model in ``start``.
    start
        The model to start from, and the teacher of ``text.distillation``. ``recipe.model`` may differ from its
        configuration only in how it is solved.
    loop
        ``callbacks``, ``resume`` and ``should_pause`` of :func:`attractor.training.train`.
    """
    distributed = distributed or DistributedContext()
    rows: PackedRows | ConversationRows
    if data.is_file():
        if start is None:
            raise ConfigError(f"{data}: conversations tune a model that has a chat template; give it to --init.")
        tokenizer: Any = start.tokenizer
        rows = ConversationRows(data, tokenizer, recipe.text.length, recipe.text.seed)
        counts = asdict(rows.stats)
    else:
        recipe, shards, tokenizer = _open_shards(recipe, data, start, distributed)
        rows, counts = PackedRows(shards, recipe.text.length, recipe.text.seed), {"num_tokens": shards.num_tokens}
    torch.manual_seed(recipe.train.seed)
    model: Any = AutoModelForCausalLM.from_config(recipe.model).to(distributed.device)
    if start is not None:
        _copy_weights(start.model, model)
    teacher: Any = start.model if start and recipe.text.distillation else None
    if teacher is not None:
        teacher.to(distributed.device).eval()
    if data.is_file():
        _stop_at_end_of_turn(model, tokenizer)
    num_steps = recipe.num_steps(rows.num_rows)
    config = replace(recipe.train, num_steps=num_steps, optimizer=recipe.optimizer, freeze=recipe.freeze)
    peak = peak_flops(distributed.device, PRECISIONS[recipe.train.precision])
    ranks = {"rank": distributed.rank, "world_size": distributed.size}
    objective = NextToken(rows, recipe.text, teacher=teacher, peak_flops=peak, **ranks)
    metadata = {
        "kind": "language",
        "recipe": to_dict(recipe),
        "text": {"tokenizer": fingerprint(tokenizer), **counts},
        "environment": environment(),
        "teacher": None if teacher is None else _checksum(teacher),  # a resumed run must have the same
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


def _open_shards(
    recipe: LanguageRecipe, data: Path, start: LoadedLanguageModel | None, distributed: DistributedContext
) -> tuple[LanguageRecipe, Shards, Any]:
    """Return prepared text with its tokenizer, and the recipe with its vocabulary."""
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
    return recipe, shards, tokenizer


def _checksum(model: Any) -> str:
    """Return a checksum of all weights."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _stop_at_end_of_turn(model: Any, tokenizer: Any) -> None:
    """Let the model's generation stop where the chat template ends an answer."""
    stops = model.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops or ())
    end = end_of_turn(tokenizer)
    if end is None:
        raise ConfigError(
            "the chat template ends an answer with no special token, so that the model would not learn to stop; let the template "
            "write eos_token after each answer."
        )
    if end not in stops:
        model.generation_config.eos_token_id = [*stops, end]


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
