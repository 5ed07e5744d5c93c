"""``attractor inspect``: one page about what a language model does between its proposal and its equilibrium."""

import random
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from attractor.cli.evaluate import LONGEST
from attractor.data.text import read_held_out
from attractor.errors import CheckpointError, ConfigError, DataError
from attractor.evaluation.internalisation import (
    Internalisation,
    TokenFigures,
    default_budget,
    measure_internalisation,
    passage,
    pieces,
    trajectories,
)
from attractor.evaluation.text import encode, max_length
from attractor.experiment.environment import environment
from attractor.experiment.loading import load_language_model
from attractor.files import check_output_dir, json_safe, write_json
from attractor.plots.report import write_report
from attractor.progress import TaskProgress

CHARACTERS = 8000  # of each document
SHOWN, NUM_SHOWN = 250, 3  # tokens of coloured text from each of so many documents
FOLLOWED, NUM_FOLLOWED = 256, 4  # tokens whose residuals are followed in each of so many documents
LEAST, MOST = 12, 32  # evaluations through which they are followed


def inspect(
    checkpoint: Path,
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
    """Show what a language model does between its proposal and its equilibrium: one page of HTML, its pictures, its figures.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken; of an attractor or a looped model.
        data: Files or folders of held-out documents, or prepared folders, of which the split val is read.
        out: Folder to write: index.html, which holds everything, PNGs, and figures.json.
        field: Where the text stands in a record.
        num_documents: How many documents are read, in turn from each path; of each a passage of 8000 characters.
        depths: Numbers of evaluations to compare with rest.
        tolerance: Relative residual at which a token is at rest, instead of the model's.
        seed: Of the passages, and of the tokens whose trajectories are drawn.
        overwrite: Write into a folder that is not empty.
    """
    _refuse(data, num_documents, depths, tolerance, seed)
    with _folder(out, overwrite) as folder:
        model, tokenizer = load_language_model(checkpoint)
        try:
            default_budget(model, tolerance)
        except ConfigError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error
        loaded: Any = model
        texts = _passages(data, field, num_documents, seed)
        with TaskProgress() as bars:
            found = measure_internalisation(
                loaded,
                tokenizer,
                texts,
                depths=depths,
                length=min(max_length(model), LONGEST),
                tolerance=tolerance,
                advance=bars.follow("reading"),
            )
            most = max(int(t.evaluations.max()) for t in found.tokens)
            paths = trajectories(
                loaded,
                [encode(tokenizer, text)[: min(FOLLOWED, found.length)] for text in texts[:NUM_FOLLOWED]],
                depth=min(max(most, LEAST), MOST),
                seed=seed,
                advance=bars.follow("following"),
            )
        command = _command(checkpoint, data, out, field, num_documents, depths, tolerance, seed)
        about = {"command": command, "environment": environment()}
        readings = [_reading(tokenizer, *pair) for pair in zip(texts[:NUM_SHOWN], found.tokens, strict=False)]
        write_report(folder, found, paths, readings, _described(checkpoint, found, about))
        write_json(folder / "figures.json", about | {"checkpoint": str(checkpoint)} | _figures(found))
    rest = found.rest
    at_rest = f"{rest.bits_per_byte:.4f} bits per byte with {rest.evaluations:.2f} evaluations a token"
    Console().print(f"{found.num_tokens:,} tokens: {at_rest}\n{out / 'index.html'}", highlight=False, soft_wrap=True)


def _refuse(
    data: tuple[Path, ...], num_documents: int, depths: tuple[int, ...], tolerance: float | None, seed: int
) -> None:
    """Say what cannot work before a model is loaded."""
    if num_documents < 1:
        raise ConfigError(f"--num-documents {num_documents}: give a whole number from 1 up.")
    if not depths or min(depths) < 0:
        raise ConfigError(f"--depths {' '.join(map(str, depths))}: give whole numbers from 0 up, at least one.")
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise ConfigError(f"--tolerance {tolerance:g}: give a positive number.")
    if seed < 0:
        raise ConfigError(f"--seed {seed}: give a whole number from 0 up.")
    if not data:
        raise ConfigError("there is no text to look at; give files or folders of held-out documents with --data.")
    for path in data:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give held-out documents with --data.")


def _passages(data: tuple[Path, ...], field: str, num: int, seed: int) -> list[str]:
    """Return a passage of each of the first documents, taken in turn from every path."""
    turns = zip_longest(*(read_held_out((path,), field) for path in data))
    first = islice((text for turn in turns for text in turn if text is not None), num)
    rng = random.Random(seed)
    return [passage(text, CHARACTERS, rng) for text in first]


@contextmanager
def _folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write to, whose files move to ``out`` in the end; after an error nothing is left of either."""
    made = [path for path in (out, *out.parents) if not path.exists()]
    check_output_dir(out, overwrite=overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=out))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another folder with --out.") from error
    try:
        yield part
        for file in sorted(part.iterdir()):
            file.replace(out / file.name)
        part.rmdir()
    except BaseException:
        shutil.rmtree(part)
        with suppress(OSError):  # something else lies there by now
            for path in made:
                path.rmdir()
        raise


def _reading(tokenizer: Any, text: str, figures: TokenFigures) -> tuple[list[str], TokenFigures]:
    """Return the first tokens of a passage and their solves, which begin with that of the end-of-text token."""
    num = min(SHOWN, len(figures.evaluations) - 1)
    here = slice(1, num + 1)
    shown = TokenFigures(evaluations=figures.evaluations[here], residual=figures.residual[here], distance=None)
    return pieces(tokenizer, text)[:num], shown


def _command(
    checkpoint: Path,
    data: tuple[Path, ...],
    out: Path,
    field: str,
    num_documents: int,
    depths: tuple[int, ...],
    tolerance: float | None,
    seed: int,
) -> str:
    words: list[Any] = ["attractor", "inspect", checkpoint, "--data", *data, "--out", out]
    words += [] if field == "text" else ["--field", field]
    words += ["--num-documents", num_documents, "--depths", *depths]
    words += [] if tolerance is None else ["--tolerance", f"{tolerance:g}"]
    return shlex.join(map(str, [*words, "--seed", seed]))


def _described(checkpoint: Path, found: Internalisation, about: dict[str, Any]) -> dict[str, str]:
    """Return what the page says of its making."""
    return {
        "command": about["command"],
        "checkpoint": str(checkpoint),
        "tokens": f"{found.num_tokens:,}",
        "tolerance": "none: a fixed number of iterations" if found.tolerance is None else f"{found.tolerance:g}",
        "environment": ", ".join(f"{name} {value}" for name, value in about["environment"].items()),
    }


def _figures(found: Internalisation) -> dict[str, Any]:
    """Return all means as plain data, null for what is not finite."""
    named = {name: getattr(found, name) for name in ("num_documents", "num_tokens", "num_bytes", "length")}
    named |= {name: getattr(found, name) for name in ("tolerance", "final", "distance", "gate", "spectral_radius")}
    rows = [json_safe(asdict(point)) for point in found.points]
    return json_safe(named) | {"points": rows}
