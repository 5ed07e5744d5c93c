"""``attractor export``: write a model at a fixed depth for stock ``transformers``."""

from pathlib import Path
from typing import Annotated

import tyro

from attractor.cli.output import say


def export(
    checkpoint: str,
    out: Path,
    /,
    depth: int,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = (),
) -> None:
    """Write a model at depth 0 or 1 as a standard Qwen3 or Llama, which transformers loads without this package.

    Args:
        checkpoint: The folder of a checkpoint, or of a run, whose newest checkpoint is taken.
        out: The folder to write; it must not exist.
        depth: 1 for one evaluation, which is the plain Transformer of all layers; 0 for the proposal.
        data: Held-out text to evaluate for the model card: files or folders of documents, or folders of prepared text, whose
            split val is read.
    """
    from attractor.experiment.conversion import export as run

    stock, held_out = run(checkpoint, out, depth=depth, data=data)
    loss = "not measured" if held_out is None else f"{held_out.exported:.4f} bits per byte"
    say(f"{out}: {type(stock).__name__}, {stock.num_parameters():,} weights, {loss}")
