"""``attractor export``: write a model at a fixed depth for stock ``transformers`` or ONNX."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from attractor.cli.output import say


def export(
    checkpoint: str,
    out: Path,
    /,
    depth: int,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = (),
    to: Literal["transformers", "onnx"] = "transformers",
) -> None:
    """Write a model at a fixed depth as a standard Qwen3, Llama, Qwen2 or Mistral, or as ONNX.

    Args:
        checkpoint: The folder of a checkpoint, or of a run, whose newest checkpoint is taken.
        out: The folder to write; it must not exist.
        depth: 1 for one evaluation, which is the plain Transformer of all layers; 0 for the proposal; with --to onnx any
            number of evaluations.
        data: Held-out text to evaluate for the model card: files or folders of documents, or folders of prepared text, whose
            split val is read.
        to: transformers for a folder that transformers loads, at depth 0 or 1; onnx for a graph that onnxruntime runs.
    """
    from attractor.experiment.conversion import export as run

    stock, held_out = run(checkpoint, out, depth=depth, data=data, to=to)
    loss = "not measured" if held_out is None else f"{held_out.exported:.4f} bits per byte"
    say(f"{out}: {type(stock).__name__}, {stock.num_parameters():,} weights, {loss}")
