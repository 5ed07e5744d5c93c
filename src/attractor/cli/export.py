"""``attractor export``: a checkpoint at a fixed depth becomes a folder for stock ``transformers``."""

from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from attractor.cli.evaluate import LONGEST
from attractor.data.text import read_held_out
from attractor.errors import DataError
from attractor.evaluation import max_length, score_text
from attractor.experiment.loading import load_language_model, quiet
from attractor.files import require_free
from attractor.interop.stock_export import HeldOut, require_exportable
from attractor.interop.stock_export import export as write


def export(
    checkpoint: Path,
    out: Path,
    /,
    depth: int,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = (),
) -> None:
    """Write a model at depth 0 or 1 as a stock Qwen3 or Llama that transformers loads without this package.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken.
        out: The folder to write.
        depth: 1 for one evaluation, which is the plain Transformer of all layers; 0 for the proposal.
        data: Held-out text to measure for the model card: files or folders of documents, or prepared folders, of which the
            split val is read.
    """
    require_free(out)
    for path in data:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give held-out documents with --data.")
    model, tokenizer = load_language_model(checkpoint)
    require_exportable(model, depth)
    held_out = _measure(model, tokenizer, data, depth) if data else None
    with quiet():
        stock = write(model, out, depth=depth, tokenizer=tokenizer, held_out=held_out)
    loss = "not measured" if held_out is None else f"{held_out.exported:.4f} bits per byte"
    Console().print(f"{out}: {type(stock).__name__}, {stock.num_parameters():,} weights, {loss}", highlight=False)


def _measure(model: Any, tokenizer: Any, data: tuple[Path, ...], depth: int) -> HeldOut:
    """Score the model at that depth, whose logits the exported network has, and where it solves something at its equilibrium."""
    length, solves = min(max_length(model), LONGEST), bool(model.config.num_attractor_layers)
    exported = score_text(model, tokenizer, read_held_out(data), length=length, depth=depth if solves else None)
    equilibrium = score_text(model, tokenizer, read_held_out(data), length=length).bits_per_byte if solves else None
    return HeldOut(
        num_documents=exported.num_documents,
        num_bytes=exported.num_bytes,
        exported=exported.bits_per_byte,
        equilibrium=equilibrium,
    )
