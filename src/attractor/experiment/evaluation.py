"""Evaluate a model from Python: ``attractor.evaluate``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attractor.data import PuzzleSet
from attractor.errors import ConfigError
from attractor.experiment.loading import LoadedLanguageModel, is_reasoner, load_reasoner, local_folder
from attractor.experiment.puzzle_evaluation import evaluate_puzzles, held_out_puzzles
from attractor.experiment.solve import LoadedReasoner
from attractor.files import json_safe, require_output_file, write_json

Figures = dict[str, Any]


def evaluate(
    model: str | Path | LoadedLanguageModel | LoadedReasoner,
    data: str | Path | PuzzleSet | Sequence[str | Path] = (),
    *,
    tasks: Sequence[str] | None = None,
    bundle: str | Path | None = None,
    fewshot_seeds: Sequence[int] | None = None,
    include_path: str | Path | None = None,
    field: str | None = None,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    length: int | None = None,
    stride: int | None = None,
    depths: Sequence[int] | None = None,
    breadths: Sequence[int] | None = None,
    selections: Sequence[str] | None = None,
    noise: float | None = None,
    halting: str | None = None,
    seed: int | None = None,
    search: bool = False,
    limit: int | None = None,
    batch_size: int = 8,
    out: str | Path | None = None,
    progress: bool = False,
) -> Figures:
    """Evaluate a language model on text and tasks, or a reasoner on puzzles.

    Parameters
    ----------
    model
        A loaded model, or what :func:`attractor.load` takes.
    data
        For the task ``text``: files or folders of held-out documents, or folders of prepared text, whose split ``val``
        is read. For ``chat``: a file of conversations. For a reasoner: a folder of puzzles, whose split ``test`` is
        read, a csv file, or a set of puzzles.
    tasks
        For language models: ``"text"`` (default), ``"chat"`` (the loss on the assistant's answers), ``"lambada"``,
        ``"core"``, ``"core-extended"``, the label of one of their tasks, or ``"harness:NAME"`` for a task of
        lm-evaluation-harness.
    bundle
        For ``lambada``, ``core``, ``core-extended`` and their tasks: the folder of the evaluation bundle, which holds
        ``core.yaml``.
    fewshot_seeds
        For the tasks of ``core`` and ``core-extended``: accuracies are means over these seeds of the few-shot examples;
        by default ``(1234,)``.
    include_path
        For ``harness:NAME``: a folder with YAML files of more tasks, as of ``lm-eval --include_path``.
    field
        For ``text``: the field of a record that holds the text; ``"text"`` by default.
    depth, tolerance, max_evaluations
        For language models: the budget of a solve, instead of the model's own. Depth 0 decodes the proposal.
    length, stride
        For ``text``: tokens in the sliding window, by default the model's positions, at most 2048; and tokens by which
        it moves, by default half of them. For ``chat``: ``length`` leaves out answers that end later.
    depths, breadths
        For reasoners: the numbers of evaluations after which answers are compared, and the numbers of restarts from
        which one answer is chosen. By default ``(1, 2, 4, 8, 16, 32, 64)`` and ``(1,)``, in rising order; for an imported
        checkpoint, those with which it was published.
    selections
        For reasoners: how one answer is chosen among the restarts, ``"residual"``, ``"logit-window"``,
        ``"halting-logit"``, ``"majority"`` or ``"top-4-majority"``. By default the first and ``"majority"``.
    noise
        For reasoners: the standard deviation of the noise in every evaluation, instead of the model's own.
    halting
        For reasoners: ``"none"`` (by default), or the ``"residual"`` or halting ``"logit"`` at which a puzzle keeps its
        answer.
    seed
        For reasoners: the seed of the initial states; 0 by default.
    search
        For reasoners of Sudokus: also search with guesses, see :func:`attractor.evaluation.run_search`.
    limit
        The largest number of documents, items of each task, or puzzles.
    batch_size
        Sequences or puzzles in a batch.
    out
        A JSON file for the returned figures. It is written after every task.
    progress
        Show progress bars.

    Returns
    -------
    dict
        Plain nested data, ready for JSON: ``"checkpoint"``, the settings, and ``"results"``. The results of a language
        model are figures by task, such as ``["results"]["text"]["bits_per_byte"]``; those of a reasoner are lists by
        breadth and depth, such as ``["results"]["exact_by_residual"]``.

    Raises
    ------
    ConfigError, DataError, CheckpointError
        If an argument, the data or the checkpoint is invalid.
    """
    _require_counts(limit, batch_size)
    target = None if out is None else Path(out)
    if target is not None:
        require_output_file(target, *_as_paths(data))
    budget = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
    text_only: dict[str, Any] = {"field": field, "length": length, "stride": stride}
    puzzles_only = {"depths": depths, "breadths": breadths, "selections": selections, "noise": noise}
    puzzles_only |= {"halting": halting, "seed": seed, "search": search or None}
    model = model if isinstance(model, LoadedLanguageModel | LoadedReasoner) else local_folder(model)
    if isinstance(model, LoadedReasoner) or (isinstance(model, Path) and is_reasoner(model)):
        language_only = {"tasks": tasks, "bundle": bundle, "include_path": include_path, **budget, **text_only}
        language_only |= {"fewshot_seeds": fewshot_seeds}
        _refuse(language_only, "is for language models; use depths and breadths for a reasoner.")
        loaded = model if isinstance(model, LoadedReasoner) else load_reasoner(model)
        given: dict[str, Any] = {name: value for name, value in puzzles_only.items() if value is not None}
        settings = vars(replace(loaded.protocol, **given))
        return _evaluate_reasoner(loaded, data, settings, limit, batch_size, target, progress)
    _refuse(puzzles_only, "is for reasoners; use tasks for a language model.")
    if isinstance(data, PuzzleSet):
        raise ConfigError("puzzles are for reasoners; give a language model files or folders of text as data.")
    from attractor.experiment.language_evaluation import LanguageEvaluation

    evaluation = LanguageEvaluation(
        tasks=tuple(tasks) if tasks is not None else ("text",),
        data=tuple(_as_paths(data)),
        bundle=None if bundle is None else Path(bundle),
        fewshot_seeds=None if fewshot_seeds is None else tuple(fewshot_seeds),
        include_path=None if include_path is None else Path(include_path),
        limit=limit,
        batch_size=batch_size,
        **text_only,
    )
    return evaluation.run(model, budget, out=target, progress=progress)


def _evaluate_reasoner(
    loaded: LoadedReasoner,
    data: Any,
    settings: dict[str, Any],
    limit: int | None,
    batch_size: int,
    out: Path | None,
    progress: bool,
) -> Figures:
    found = held_out_puzzles(loaded, data, limit)
    results = evaluate_puzzles(loaded, found, **settings, batch_size=batch_size, progress=progress)
    figures: Figures = json_safe({"checkpoint": str(loaded.path), "seed": settings["seed"], "results": results})
    if out is not None:
        write_json(out, figures)
    return figures


def _as_paths(data: Any) -> list[Path]:
    """Return the paths among the data."""
    items = (data,) if isinstance(data, str | Path) else data if isinstance(data, Iterable) else ()
    return [Path(item) for item in items if isinstance(item, str | Path)]


def _require_counts(limit: int | None, batch_size: int) -> None:
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}: give a whole number from 1 up.")


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Raise a ConfigError for an option that was given but has no effect."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"{name} {why}")
