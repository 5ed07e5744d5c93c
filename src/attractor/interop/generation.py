"""How a model generates, carried over to another model."""

import copy
from typing import Any

from transformers import GenerationConfig

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def take_special_tokens(model: Any, tokenizer: Any) -> None:
    """Let ``model`` end texts with the tokenizer's tokens, where it names none of its own."""
    for name in SPECIAL:
        if getattr(model.generation_config, name) is None:
            setattr(model.generation_config, name, getattr(tokenizer, name))
        if getattr(model.config, name) is None:
            setattr(model.config, name, getattr(tokenizer, name))


def copy_generation_config(source: Any, target: Any) -> None:
    """Give ``target`` the generation config of ``source``: all end tokens, sampling, limits.

    Special tokens that only the configuration of ``source`` names are kept too.
    """
    config: GenerationConfig = copy.deepcopy(source.generation_config)
    for name in SPECIAL:
        if getattr(config, name) is None:
            setattr(config, name, getattr(source.config, name))
    config._from_model_config = False  # otherwise loading would derive it from config.json again
    target.generation_config = config
