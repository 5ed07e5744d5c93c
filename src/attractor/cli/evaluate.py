"""``attractor evaluate``: a model judged on what it has not seen: text, LAMBADA, CORE, lm-evaluation-harness; puzzles."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from attractor.cli.evaluate_puzzles import evaluate_reasoner
from attractor.config import suggestion
from attractor.data.text import read_held_out
from attractor.errors import ConfigError, DataError
from attractor.evaluation.core import core, evaluate_task, find_task, lambada, read_tasks
from attractor.evaluation.harness import harness, require_tasks
from attractor.evaluation.text import known_budget, max_length, score_text
from attractor.experiment.loading import load_language_model
from attractor.experiment.puzzles import is_reasoner
from attractor.files import json_safe, write_json
from attractor.progress import TaskProgress

Figures = dict[str, Any]
HARNESS = "harness:"
DEPTHS = (1, 2, 4, 8, 16, 32, 64)  # at which puzzles are judged, unless told
LONGEST = 2048  # tokens of the window over text, unless told


def evaluate(
    checkpoint: Path,
    /,
    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK ...")] = ("text",),
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = (),
    field: str = "text",
    bundle: Path | None = None,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    length: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    depths: tuple[int, ...] = DEPTHS,
    breadths: tuple[int, ...] = (1,),
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Judge a model on text, tasks or puzzles that it has not seen; print the figures.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken, or any causal model's of transformers.
        tasks: text, lambada, core, one CORE task by its label, or harness:NAME for any task of lm-evaluation-harness.
        data: For text: files or folders of held-out documents, or prepared folders, of which the split val is read. For puzzles:
            a prepared folder, of which the split test is read, or a csv.
        field: For text: where it stands in a record.
        bundle: For lambada and CORE tasks: the evaluation bundle's folder, with core.yaml in it.
        depth: Evaluations a token, instead of solving to tolerance; 0 decodes the proposal.
        tolerance: Instead of the model's.
        max_evaluations: Instead of the model's.
        length: For text: tokens the sliding window holds; by default as many as the model knows positions for, at most 2048.
        stride: For text: tokens by which it moves; by default half of them.
        limit: At most so many items of each task, or documents of the text.
        batch_size: Sequences, or puzzles, at a time.
        depths: For puzzles: evaluations after which answers are judged.
        breadths: For puzzles: of how many random starts one answer is chosen.
        seed: For puzzles: of the random starts.
        out: A JSON file to write the figures to.
    """
    _refuse(limit, batch_size, out)
    asked = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
    text_only = {"field": None if field == "text" else field, "length": length, "stride": stride}
    puzzles_only = {
        "depths": None if depths == DEPTHS else depths,
        "breadths": None if breadths == (1,) else breadths,
        "seed": seed or None,
    }
    if is_reasoner(checkpoint):
        language = {"tasks": None if tasks == ("text",) else tasks, "bundle": bundle, **asked, **text_only}
        _refuse_given(language, "is for language models; a reasoner is judged by --depths and --breadths.")
        evaluate_reasoner(
            checkpoint,
            data,
            depths=depths,
            breadths=breadths,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            out=out,
        )
        return
    _refuse_given(puzzles_only, "is for reasoners of puzzles; a language model is judged by --tasks.")
    if "text" not in tasks:
        _refuse_given({"data": data or None, **text_only}, f"is for the task text, not for {', '.join(tasks)}.")
    if all(task == "text" or task.startswith(HARNESS) for task in tasks):
        _refuse_given({"bundle": bundle}, "is for lambada, core and CORE tasks; name one with --tasks.")
    _refuse_tasks(tasks, data, bundle)
    model, tokenizer = load_language_model(checkpoint)
    budget = known_budget(model, asked)
    window = min(max_length(model), LONGEST) if length is None else length
    results: dict[str, Figures] = {}
    with TaskProgress() as bars:
        for task in tasks:
            if task == "text":
                score = score_text(
                    model,
                    tokenizer,
                    islice(read_held_out(data, field), limit),
                    length=window,
                    stride=stride,
                    batch_size=batch_size,
                    advance=bars.follow(task),
                    **budget,
                )
                figures = {"bits_per_byte": score.bits_per_byte, "perplexity": score.perplexity, **asdict(score)}
                results[task] = figures | {"length": window}
            else:
                settings = {"limit": limit, "batch_size": batch_size, **budget}
                results |= _task_figures(task, model, tokenizer, bundle, bars, settings)
            if out is not None:  # after every task: the next may fail, or take hours
                described = {
                    "checkpoint": str(checkpoint),
                    "budget": budget,
                    "limit": limit,
                    "results": json_safe(results),
                }
                write_json(out, described)
    Console().print(_table(results))


def _task_figures(
    task: str, model: Any, tokenizer: Any, bundle: Path | None, bars: TaskProgress, settings: dict[str, Any]
) -> dict[str, Figures]:
    if task.startswith(HARNESS):
        found = harness(model, tokenizer, [task.removeprefix(HARNESS)], **settings)
        return {HARNESS + name: figures for name, figures in found.items()}
    assert bundle is not None  # or the task was refused
    if task == "lambada":
        words = lambada(model, tokenizer, bundle, advance=bars.follow(task), **settings)
        return {task: {"perplexity": words.perplexity, **asdict(words)}}
    if task == "core":
        whole = core(model, tokenizer, bundle, advance=lambda label, *n: bars.follow(label)(*n), **settings)
        scores = whole.tasks
        last = {whole.name: {"centred": whole.value, "missing": list(whole.missing)}}
    else:
        scores = (evaluate_task(model, tokenizer, find_task(bundle, task), advance=bars.follow(task), **settings),)
        last = {}
    return {score.label: {"centred": score.centred, **asdict(score)} for score in scores} | last


def _refuse(limit: int | None, batch_size: int, out: Path | None) -> None:
    """Say what is wrong before a model is loaded, and before hours are spent."""
    for name, value in (("limit", limit), ("batch-size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: give a whole number from 1 up.")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"{out}: cannot be written; give --out a file in a folder that exists.")


def _refuse_given(options: Mapping[str, Any], why: str) -> None:
    """Refuse an option that was given where it has no effect."""
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} {why}")


def _refuse_tasks(tasks: tuple[str, ...], data: tuple[Path, ...], bundle: Path | None) -> None:
    """Say what is missing or misspelt."""
    if not tasks:
        raise ConfigError("there is nothing to judge by; give --tasks text, lambada, core or harness:NAME.")
    if "text" in tasks and not data:
        raise ConfigError("the task text needs held-out documents; give files or folders with --data.")
    for path in data:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give held-out documents with --data.")
    if foreign := [task.removeprefix(HARNESS) for task in tasks if task.startswith(HARNESS)]:
        require_tasks(foreign)
    named = [task for task in tasks if task != "text" and not task.startswith(HARNESS)]
    if named and bundle is None:
        known = "choose text, lambada, core or harness:NAME, or give the bundle that has it with --bundle"
        raise ConfigError(f"the task {named[0]!r} is not known without an evaluation bundle; {known}.")
    if named and bundle is not None:
        labels = [task.label for task in read_tasks(bundle)]
        for task in named:
            if task not in ("lambada", "core", *labels):
                raise ConfigError(f"unknown task {task!r}; {suggestion(task, ['text', 'lambada', 'core', *labels])}")


def _table(results: dict[str, Figures]) -> Table:
    """One row a task, its first figure apart; counts and flags only where they say something."""
    view = Table()
    for column in ("task", "", "", "more"):
        view.add_column(column, justify="right" if not column else "left", overflow="fold")
    for task, figures in results.items():
        shown = {k: v for k, v in figures.items() if k != "label" and v is not None and v is not False}
        if (num_all := shown.pop("num_all", None)) is not None:
            shown["num_items"] = f"{shown['num_items']:,} of {num_all:,}"
        if not shown.get("num_cut"):
            shown.pop("num_cut", None)
        named = [(name.removeprefix("num_").replace("_", " "), _short(value)) for name, value in shown.items()]
        named = named or [("", "")]
        view.add_row(task, *named[0], ", ".join(f"{name} {value}" for name, value in named[1:]))
    return view


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
