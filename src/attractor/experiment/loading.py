"""A language model from a folder: our checkpoints, and plain ones of ``transformers``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

import attractor.models.language  # noqa: F401  makes our models known to the Auto classes
from attractor.data.text import load_tokenizer
from attractor.errors import CheckpointError, DataError
from attractor.training import find_checkpoint, verify_weights


def load_language_model(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, in evaluation mode, and the tokenizer of a checkpoint's folder: all of it or nothing.

    The model is on the GPU if there is one.

    Parameters
    ----------
    path
        A folder with ``config.json``, weights and a tokenizer; or a run's folder, whose newest checkpoint is taken.

    Raises
    ------
    CheckpointError
        For folders that hold no language model, a damaged one, or weights that are not exactly the model's.
    """
    checkpoint = path if (path / "config.json").is_file() else find_checkpoint(path)
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: holds no language model (no config.json); give one that does.")
    verify_weights(checkpoint)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # a foreign or damaged folder fails in many ways, all of which mean this
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{checkpoint}: cannot be loaded as a language model ({reason})") from error
    model, info = loaded
    odd = _odd(info)
    if odd:
        raise CheckpointError(
            f"{checkpoint}: its weights do not fit its config.json ({len(odd)} differ, first {odd[0]}); "
            "the checkpoint is damaged, was edited, or is of another kind."
        )
    try:
        tokenizer = load_tokenizer(checkpoint)
    except DataError as error:
        raise CheckpointError(
            f"{checkpoint}: has no tokenizer beside its model; copy the one it was trained with."
        ) from error
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise CheckpointError(
            f"{checkpoint}: its tokenizer has {len(tokenizer)} entries and its model only "
            f"{model.get_input_embeddings().num_embeddings}; they do not belong together."
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def _odd(info: dict[str, Any]) -> list[str]:
    names = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    return sorted(name if isinstance(name, str) else name[0] for name in names)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the reports and bars of ``transformers`` off the screen: what matters in them is said in one sentence."""
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
