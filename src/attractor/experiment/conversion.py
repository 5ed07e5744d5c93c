"""Write a model in another form: for inference only, as a stock model, or from another format."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from attractor.data.text import load_tokenizer, read_held_out
from attractor.evaluation.text import DEFAULT_WINDOW, TextScore, max_length, score_text
from attractor.experiment.language_evaluation import held_out_paths
from attractor.experiment.loading import LoadedLanguageModel, load, load_language_model, local_folder, require_fitting
from attractor.files import new_folder, require_free
from attractor.files.manifest import write_checksums
from attractor.files.received import quiet
from attractor.interop import HeldOut, export_onnx
from attractor.interop import export as write_stock
from attractor.interop import import_official as read_official
from attractor.interop import retrofit as retrofit_backbone
from attractor.interop.generation import take_special_tokens
from attractor.interop.onnx_export import require_onnx
from attractor.interop.stock_export import require_exportable
from attractor.training import find_checkpoint
from attractor.training.checkpoint import inference_files, save_weights
from attractor.training.checkpoint import load as load_state

SAMPLE = """\
A lighthouse stands on a rock at the entrance of a harbour. Its lamp is lit at dusk and burns until the sun has risen. A
hundred years ago a keeper lived in it with his family, carried oil up the stairs every evening, and wound the clock that
turned the lens. Today a computer does this work, and an engineer comes by boat twice a year to clean the glass.

Ships no longer need the light to find their way, because satellites tell them where they are. Most captains still look
for it. A number on a screen can be wrong, and a light that has been seen from the same place for generations is a good
way to check it. For the same reason the harbour still publishes the times of high and low water on paper.

In winter the waves reach the gallery, thirty metres above the sea. The tower was built from blocks of granite that were
cut so that each one locks into its neighbours. The first two towers were made of wood; one burned down, and a storm
carried the other away.
"""


def export(
    model: str | Path | LoadedLanguageModel,
    out: str | Path,
    *,
    depth: int,
    data: str | Path | Sequence[str | Path] = (),
    to: str = "transformers",
) -> tuple[Any, HeldOut | None]:
    """Write a language model at a fixed depth in a form that does not need this package.

    ``to="transformers"`` writes depth 0 or 1 as a stock model such as Qwen3, and ``to="onnx"`` any depth as a graph.

    Parameters
    ----------
    depth
        1 for one evaluation, which is the plain Transformer of all layers; 0 for the proposal.
    data
        Held-out text to evaluate for the model card: files or folders of documents, or folders of prepared text.

    Returns
    -------
    model, held_out
        The written model, and the losses on ``data`` if there are any.

    Raises
    ------
    ConfigError
        If no such form computes the same, or ``out`` exists or cannot be written.
    """
    require_free(Path(out))
    paths = held_out_paths((data,) if isinstance(data, str | Path) else tuple(data))
    loaded = model if isinstance(model, LoadedLanguageModel) else load_language_model(local_folder(model))
    (require_exportable if to == "transformers" else require_onnx)(loaded.model, depth)
    held_out = _held_out_loss(loaded, paths, depth) if paths else None
    write = write_stock if to == "transformers" else export_onnx
    with quiet():
        written = write(loaded.model, out, depth=depth, tokenizer=loaded.tokenizer, held_out=held_out)
    return written, held_out


def _held_out_loss(loaded: LoadedLanguageModel, paths: tuple[Path, ...], depth: int) -> HeldOut:
    """Return the loss at the exported depth and, if the model has an equilibrium, there."""
    model: Any = loaded.model
    length = min(max_length(model), DEFAULT_WINDOW)
    has_equilibrium = bool(getattr(model.config, "num_attractor_layers", 0))

    def score(**budget: Any) -> Any:
        return score_text(model, loaded.tokenizer, read_held_out(paths), length=length, **budget)

    exported = score(depth=depth) if model.recurrent_layers else score()
    return HeldOut(
        num_documents=exported.num_documents,
        num_bytes=exported.num_bytes,
        exported=exported.bits_per_byte,
        equilibrium=score(tolerance=model.model.default_tolerance).bits_per_byte if has_equilibrium else None,
    )


def export_inference(checkpoint: str | Path, out: str | Path, *, latest: bool = False) -> Path:
    """Write the files of a checkpoint that inference needs, and return the checkpoint's folder.

    ``latest`` writes the weights of the last step instead of the averaged weights. ``out`` must not exist.
    """
    target = Path(out)
    require_free(target)
    source = find_checkpoint(local_folder(checkpoint))
    names = inference_files(source)
    model = _latest_model(source) if latest else None
    with new_folder(target) as part:
        for name in names:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, part / name)
        if model is not None:
            _replace_weights(model, part)
        write_checksums(part)
    return source


def _latest_model(checkpoint: Path) -> Any:
    model = load(checkpoint, device="cpu").model
    load_state(checkpoint, {"model": model.state_dict()}, partial=True)
    return model


def _replace_weights(model: Any, folder: Path) -> None:
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    if hasattr(model, "save_pretrained"):
        with quiet():
            model.save_pretrained(folder)
    else:
        save_weights(model.state_dict(), folder)


def import_official(folder: str | Path, out: str | Path) -> tuple[Any, Any]:
    """Convert a checkpoint in the format of the paper's authors. Return the model and its tokenizer, if it has one.

    ``folder`` holds ``config.json`` and weights that :func:`attractor.interop.weights.read_weights` can read.
    """
    source = Path(folder)
    require_free(Path(out))
    model = read_official(source)
    has_tokenizer = any((source / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    tokenizer = load_tokenizer(source) if has_tokenizer else None
    if tokenizer is not None:
        take_special_tokens(model, tokenizer)
    _save(Path(out), model, tokenizer)
    return model, tokenizer


@dataclass(frozen=True, kw_only=True)
class DepthScore:
    """The loss of a text that is read with ``budget``, and the tokens read per second."""

    budget: dict[str, float]
    score: TextScore
    tokens_per_second: float


def retrofit(
    backbone: str | Path, out: str | Path, *, data: str | Path | Sequence[str | Path] = (), **settings: Any
) -> tuple[Any, list[DepthScore]]:
    """Write the attractor model of a pretrained backbone with its tokenizer.

    Parameters
    ----------
    data
        Text on which depths are compared, as for :func:`export`; by default a few sentences. The first 2,000 characters
        of the first four documents are read.
    settings
        Those of :func:`attractor.retrofit`.

    Returns
    -------
    model, scores
        The model; and its loss and speed at depth 1, at depth 2 and at the equilibrium, before any training.
    """
    require_free(Path(out))
    paths = held_out_paths((data,) if isinstance(data, str | Path) else tuple(data))
    with quiet():
        tokenizer = load_tokenizer(Path(backbone))
        model = retrofit_backbone(backbone, **settings)
    require_fitting(tokenizer, model.config.vocab_size, backbone)
    texts = [text[:2000] for text in islice(read_held_out(paths), 4)] if paths else [SAMPLE]
    budgets: list[dict[str, float]] = []
    if model.config.num_attractor_layers:
        budgets = [{"depth": 1}, {"depth": 2}, {"tolerance": model.model.default_tolerance}]
    warmed_up = [*budgets[:1], *budgets]  # the first call is slower
    scores = [_score_depth(model, tokenizer, texts, budget) for budget in warmed_up][1:]
    _save(Path(out), model, tokenizer)  # at last, so that an error leaves nothing
    return model, scores


def _score_depth(model: Any, tokenizer: Any, texts: Sequence[str], budget: dict[str, Any]) -> DepthScore:
    started = time.perf_counter()
    score = score_text(model, tokenizer, texts, length=min(max_length(model), 512), **budget)
    return DepthScore(budget=budget, score=score, tokens_per_second=score.num_tokens / (time.perf_counter() - started))


def _save(out: Path, model: Any, tokenizer: Any) -> None:
    with new_folder(out) as part, quiet():
        model.save_pretrained(part)
        if tokenizer is not None:
            tokenizer.save_pretrained(part)
