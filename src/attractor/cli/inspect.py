"""``attractor inspect``: a page about what a language model does between its proposal and its equilibrium."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import tyro

from attractor.cli.output import say


def inspect(
    checkpoint: str,
    /,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")],
    out: Path = Path("inspect"),
    field: str = "text",
    num_documents: int = 8,
    depths: Annotated[tuple[int, ...], tyro.conf.arg(metavar="DEPTH ...")] = (0, 1, 2, 4, 8),
    tolerance: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Compare depths with the equilibrium: write an HTML page, its figures as PNG, and all numbers.

    Args:
        checkpoint: The folder of a checkpoint, or of a run, whose newest checkpoint is taken; of an attractor or looped
            model.
        data: Files or folders of held-out documents, or folders of prepared text, whose split val is read.
        out: The folder to write: index.html, which needs no other file, PNGs, and figures.json.
        field: The field of a record that holds the text.
        num_documents: The number of documents, taken in turn from each path. A passage of 8000 characters of each is
            read.
        depths: Numbers of evaluations to compare with the equilibrium.
        tolerance: The relative residual at which a token has converged, instead of the model's.
        seed: The seed for the passages, and for the tokens whose trajectories are drawn.
        overwrite: Write into a folder that is not empty.
    """
    from attractor.experiment.inspection import inspect as run

    words: list[Any] = ["attractor", "inspect", checkpoint, "--data", *data, "--out", out]
    words += [] if field == "text" else ["--field", field]
    words += ["--num-documents", num_documents, "--depths", *depths]
    words += [] if tolerance is None else ["--tolerance", f"{tolerance:g}"]
    words += ["--seed", seed]
    found = run(
        checkpoint,
        data,
        out,
        field=field,
        num_documents=num_documents,
        depths=depths,
        tolerance=tolerance,
        seed=seed,
        overwrite=overwrite,
        command=shlex.join(map(str, words)),
        progress=True,
    )
    mean = found.equilibrium
    result = f"{mean.bits_per_byte:.4f} bits per byte with {mean.evaluations:.2f} evaluations per token"
    say(f"{found.num_tokens:,} tokens: {result}", found.summary(), f"{out / 'index.html'}")
