"""Load a trained model from a checkpoint's folder, a run's folder, or the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attractor.config import from_dict
from attractor.data import find_puzzle
from attractor.errors import CheckpointError, ConfigError, DataError, requires_extra
from attractor.experiment.generation import answer, generate
from attractor.experiment.pretrained import FOLDER, pretrained
from attractor.experiment.solve import LoadedReasoner
from attractor.files import first_line
from attractor.files.received import check_model_folder, load_reason, quiet
from attractor.recipes import PuzzleRecipe
from attractor.training import find_checkpoint, load_model, read_run, verify_inference

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REASONER = "reasoner"  # the kind of a checkpoint, in its run.json
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
HUB_FILES = ("*.json", "*.safetensors", "tokenizer*", "*.txt")


@dataclass(frozen=True)
class LoadedLanguageModel:
    """A language model in evaluation mode, its tokenizer, and the folder they come from."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    path: Path

    def generate(self, prompt: str, **settings: Any) -> str:
        """Return ``prompt`` with its continuation. Settings are those of :func:`attractor.experiment.generation.generate`."""
        return generate(self.model, self.tokenizer, prompt, **settings).text

    def chat(self, messages: list[dict[str, str]], **settings: Any) -> str:
        """Return the answer to messages ``{"role": "user", "content": ...}``. Settings are those of :meth:`generate`."""
        return answer(self.model, self.tokenizer, messages, **settings).text


def load(path: str | Path, *, device: str | torch.device | None = None) -> LoadedReasoner | LoadedLanguageModel:
    """Load a model for inference. Code in a checkpoint is never run.

    Parameters
    ----------
    path
        The folder of a checkpoint, the folder of a run (its newest checkpoint is loaded), the folder of any causal
        language model of ``transformers``, the name of a model that comes with the package (``attractor.pretrained()``),
        or the name ``owner/name`` of a model on the Hugging Face hub.
    device
        The device for the model. By default the GPU if there is one, otherwise the CPU.

    Raises
    ------
    CheckpointError
        If there is no model, or it is damaged.
    """
    folder = local_folder(path)
    return load_reasoner(folder, device=device) if is_reasoner(folder) else load_language_model(folder, device=device)


def local_folder(path: str | Path) -> Path:
    """Return ``path`` as a folder. The files of a model on the hub are downloaded first, except code and pickles."""
    folder, name = Path(path), str(path)
    if not folder.exists() and name in pretrained():
        return FOLDER / name
    if folder.exists() or not isinstance(path, str) or not HUB_NAME.fullmatch(name) or folder.parent.exists():
        return folder
    with requires_extra("language"):
        from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the library raises many kinds of errors
        raise CheckpointError(
            f"{name}: is neither a folder nor a model that can be downloaded from the hub ({first_line(error)})."
        ) from error


def is_reasoner(path: Path) -> bool:
    """Return whether a checkpoint's or a run's folder holds a reasoner."""
    try:
        return bool(read_run(find_checkpoint(path)).get("kind") == REASONER)
    except CheckpointError:
        return False


def load_reasoner(
    path: str | Path, *, kind: str | None = None, device: str | torch.device | None = None
) -> LoadedReasoner:
    """Load a reasoner, see :func:`load`. Raises CheckpointError if it was not trained on puzzles of ``kind``."""
    checkpoint = find_checkpoint(local_folder(path))
    run = read_run(checkpoint, REASONER)
    try:
        recipe = from_dict(PuzzleRecipe, run["recipe"])
        puzzle, size = find_puzzle(run["puzzles"]["kind"]), run["puzzles"]["size"]
        protocol, names = run.get("protocol", {}), run["puzzles"].get("names")
        loaded = LoadedReasoner(recipe.model.build(), puzzle, size, checkpoint, protocol, names)
    except (KeyError, TypeError, ConfigError, DataError) as error:
        raise CheckpointError(f"{checkpoint / 'run.json'}: cannot be used ({first_line(error)}).") from error
    if kind is not None and puzzle.kind != kind:
        raise CheckpointError(
            f"{checkpoint}: was trained on puzzles of kind {puzzle.kind}, not {kind}; give another one."
        )
    load_model(checkpoint, loaded.model)
    loaded.model.to(_device(device)).eval()
    return loaded


def load_language_model(path: Path, *, device: str | torch.device | None = None) -> LoadedLanguageModel:
    """Load a language model and its tokenizer, see :func:`load`. The weights must be those of its configuration."""
    with requires_extra("language"):
        from transformers import AutoModelForCausalLM

        import attractor.models.language  # noqa: F401  registers its models with the Auto classes
    check_model_folder(path, CheckpointError)
    checkpoint = path if (path / "config.json").is_file() else find_checkpoint(path)
    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(f"{checkpoint}: holds no language model (no config.json); give one that does.")
    verify_inference(checkpoint)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                checkpoint, local_files_only=True, output_loading_info=True, trust_remote_code=False
            )
    except Exception as error:  # damaged folders, and those of other libraries, fail in many ways
        raise CheckpointError(f"{checkpoint}: cannot be loaded as a language model ({load_reason(error)}).") from error
    model, info = loaded
    keys = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong := sorted(key if isinstance(key, str) else key[0] for key in keys):
        raise CheckpointError(
            f"{checkpoint}: its weights do not fit its config.json ({len(wrong)} differ, first {wrong[0]}); "
            "the checkpoint is damaged, was edited, or is of another kind."
        )
    tokenizer = _tokenizer(checkpoint, model.get_input_embeddings().num_embeddings)
    return LoadedLanguageModel(model.to(_device(device)).eval(), tokenizer, checkpoint)


def _tokenizer(checkpoint: Path, num_embeddings: int) -> Any:
    from attractor.data.text import load_tokenizer

    try:
        tokenizer = load_tokenizer(checkpoint)
    except DataError as error:
        raise CheckpointError(
            f"{checkpoint}: has no tokenizer; copy the one that the model was trained with."
        ) from error
    require_fitting(tokenizer, num_embeddings, checkpoint)
    return tokenizer


def require_fitting(tokenizer: Any, num_embeddings: int, where: str | Path) -> None:
    """Raise a CheckpointError if a tokenizer has more entries than the embedding of its model."""
    if len(tokenizer) > num_embeddings:
        raise CheckpointError(
            f"{where}: its tokenizer has {len(tokenizer)} entries and its model only {num_embeddings}; "
            "they do not belong together."
        )


def _device(device: str | torch.device | None) -> str | torch.device:
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
