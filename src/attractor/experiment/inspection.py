"""Write a page about what a language model does between its proposal and its equilibrium."""

import random
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from attractor.data.text import read_held_out
from attractor.errors import CheckpointError, ConfigError
from attractor.evaluation.internalisation import Internalisation, TokenStats, default_budget, measure_internalisation
from attractor.evaluation.text import DEFAULT_WINDOW, encode, max_length, passage, token_texts
from attractor.evaluation.trajectories import Trajectories, trajectories
from attractor.experiment.environment import environment
from attractor.experiment.generation import describe_budget
from attractor.experiment.language_evaluation import held_out_paths
from attractor.experiment.loading import LoadedLanguageModel, load_language_model, local_folder
from attractor.files import output_folder, write_json
from attractor.plots.report import write_report
from attractor.progress import TaskProgress

CHARACTERS = 8000  # of each document
NUM_SHOWN, SHOWN_TOKENS = 3, 250  # documents whose first tokens the page shows
NUM_FOLLOWED, FOLLOWED_TOKENS = 4, 256  # documents whose residuals are followed
MIN_FOLLOWED_DEPTH, MAX_FOLLOWED_DEPTH = 12, 32


def inspect(
    model: str | Path | LoadedLanguageModel,
    data: str | Path | Sequence[str | Path],
    out: str | Path = "inspect",
    *,
    field: str = "text",
    num_documents: int = 8,
    depths: Sequence[int] = (0, 1, 2, 4, 8),
    tolerance: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
    command: str = "attractor.inspect",
    progress: bool = False,
) -> Internalisation:
    """Compare depths with the equilibrium on held-out text, and write a page of HTML, PNGs, and ``figures.json``.

    Parameters
    ----------
    model
        A loaded attractor model or looped model, or what :func:`attractor.load` takes.
    data
        Files or folders of held-out documents, or folders of prepared text, whose split ``val`` is read.
    out
        The folder to write. ``index.html`` works offline and needs no other file.
    field
        The field of a record that holds the text.
    num_documents
        The number of documents, taken in turn from each path. A passage of 8,000 characters of each is read.
    depths
        Numbers of evaluations to compare with the equilibrium.
    tolerance
        The relative residual at which a token has converged, instead of the model's.
    seed
        The seed for the passages, and for the tokens whose trajectories are drawn.
    overwrite
        Write into a folder that is not empty.
    command
        The command that the page shows.

    Raises
    ------
    ConfigError, DataError, CheckpointError
        If an argument, the data or the checkpoint is invalid. Nothing is written then.
    """
    if num_documents < 1:
        raise ConfigError(f"num_documents={num_documents}: give a whole number from 1 up.")
    if not depths or min(depths) < 0:
        raise ConfigError(f"depths={' '.join(map(str, depths))}: give whole numbers from 0 up, at least one.")
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise ConfigError(f"tolerance={tolerance:g}: give a positive number.")
    if seed < 0:
        raise ConfigError(f"seed={seed}: give a whole number from 0 up.")
    paths = held_out_paths((data,) if isinstance(data, str | Path) else tuple(data))
    if not paths:
        raise ConfigError("there is no text; give files or folders of held-out documents with --data.")
    with output_folder(Path(out), overwrite=overwrite) as folder:
        loaded = model if isinstance(model, LoadedLanguageModel) else load_language_model(local_folder(model))
        language_model: Any = loaded.model
        try:
            default_budget(language_model, tolerance)
        except ConfigError as error:
            raise CheckpointError(f"{loaded.path}: {error}") from error
        texts = _passages(paths, field, num_documents, seed)
        with TaskProgress(enabled=progress) as bars:
            found = measure_internalisation(
                language_model,
                loaded.tokenizer,
                texts,
                depths=depths,
                length=min(max_length(language_model), DEFAULT_WINDOW),
                tolerance=tolerance,
                advance=bars.follow("depths"),
            )
            most = max(int(tokens.evaluations.max()) for tokens in found.tokens)
            followed = trajectories(
                language_model,
                [encode(loaded.tokenizer, text)[: min(FOLLOWED_TOKENS, found.length)] for text in texts[:NUM_FOLLOWED]],
                depth=min(max(most, MIN_FOLLOWED_DEPTH), MAX_FOLLOWED_DEPTH),
                seed=seed,
                advance=bars.follow("trajectories"),
            )
        shown = [_first_tokens(loaded.tokenizer, *pair) for pair in zip(texts[:NUM_SHOWN], found.tokens, strict=False)]
        about = {"command": command, "checkpoint": str(loaded.path)}
        about["budget by default"] = describe_budget(language_model)
        _write(folder, found, followed, shown, about)
    return found


def _passages(paths: tuple[Path, ...], field: str, num: int, seed: int) -> list[str]:
    """Return a passage of each of the first documents, taken in turn from every path."""
    turns = zip_longest(*(read_held_out((path,), field) for path in paths))
    first = islice((text for turn in turns for text in turn if text is not None), num)
    rng = random.Random(seed)
    return [passage(text, CHARACTERS, rng) for text in first]


def _first_tokens(tokenizer: Any, text: str, tokens: TokenStats) -> tuple[list[str], TokenStats]:
    """Return the first tokens of a passage and their solves, without that of the end-of-text token."""
    num = min(SHOWN_TOKENS, len(tokens.evaluations) - 1)
    part = slice(1, num + 1)
    shown = TokenStats(evaluations=tokens.evaluations[part], residual=tokens.residual[part], proposal_distance=None)
    return token_texts(tokenizer, text)[:num], shown


def _write(folder: Path, found: Internalisation, followed: Trajectories, shown: Any, about: dict[str, Any]) -> None:
    rows = {
        "tokens": f"{found.num_tokens:,}",
        "tolerance": "none: a fixed number of iterations" if found.tolerance is None else f"{found.tolerance:g}",
        "environment": ", ".join(f"{name} {value}" for name, value in environment().items()),
    }
    write_report(folder, found, followed, shown, about | rows)
    figures = {name: value for name, value in vars(found).items() if name != "tokens"}
    figures |= {"proposal_distance": found.proposal_distance, "points": [asdict(point) for point in found.points]}
    write_json(folder / "figures.json", about | {"environment": environment()} | figures)
