"""``attractor evaluate``: evaluate a model on text, tasks or puzzles."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from attractor.cli.output import add_row, say
from attractor.cli.puzzle_table import show_puzzles

Figures = dict[str, Any]


def evaluate(
    checkpoint: str,
    /,
    tasks: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="TASK ...")] = None,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = (),
    field: str | None = None,
    bundle: Path | None = None,
    fewshot_seeds: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="SEED ...")] = None,
    include_path: Path | None = None,
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    length: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    depths: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="DEPTH ...")] = None,
    breadths: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="BREADTH ...")] = None,
    selections: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="SELECTION ...")] = None,
    noise: float | None = None,
    halting: Literal["none", "residual", "logit"] | None = None,
    seed: int | None = None,
    search: bool = False,
    out: Path | None = None,
) -> None:
    """Evaluate a model on unseen text, tasks or puzzles, and print the results.

    Args:
        checkpoint: The folder of a checkpoint, of a run, or of any causal language model of transformers; or a name on
            the hub.
        tasks: For language models: text (default), chat (the loss on the assistant's answers), lambada, core,
            core-extended, the label of one of their tasks, or harness:NAME for a task of lm-evaluation-harness.
        data: For the task text: files or folders of held-out documents, or folders of prepared text, whose split val is
            read. For chat: a file of conversations, as for attractor train. For puzzles: a prepared folder, whose split
            test is read, or a csv.
        field: For the task text: the field of a record that holds the text; by default text.
        bundle: For lambada, core, core-extended and their tasks: the folder of the evaluation bundle, which holds
            core.yaml.
        fewshot_seeds: For the tasks of core and core-extended: accuracies are means over these seeds of the few-shot
            examples; by default 1234.
        include_path: For harness:NAME: a folder with YAML files of more tasks.
        depth: For language models: evaluations per token, instead of a tolerance; 0 decodes the proposal.
        tolerance: For language models: the relative residual at which a token has converged, instead of the model's.
        max_evaluations: For language models: the largest number of evaluations, instead of the model's.
        length: For the task text: tokens in the sliding window; by default the model's positions, at most 2048. For
            chat: answers that end later are left out.
        stride: For the task text: tokens by which the window moves; by default half of them.
        limit: The largest number of documents, items of each task, or puzzles.
        batch_size: Sequences or puzzles in a batch.
        depths: For puzzles: numbers of evaluations, in rising order; by default 1 2 4 8 16 32 64, or as published.
        breadths: For puzzles: numbers of restarts from which one answer is chosen, in rising order; by default 1.
        selections: For puzzles: how an answer is chosen among restarts: residual and majority (by default), logit-window
            (of EqR), halting-logit (of PTRM), or top-4-majority.
        noise: For puzzles: the standard deviation of the noise in every evaluation, instead of the model's own.
        halting: For puzzles: when a puzzle stops and keeps its answer: none (after all evaluations; the default), residual
            (below 1e-4) or logit (of the halting head, above 0).
        seed: For puzzles: the seed of the initial states; by default 0.
        search: For Sudokus: also let the model guess digits, and the rules take wrong guesses back, until an answer
            follows the rules.
        out: A JSON file to write the figures to.
    """
    options = locals()  # every option by its name
    from attractor.experiment.evaluation import evaluate as run

    figures = run(options.pop("checkpoint"), **options, progress=True)
    results = figures["results"]
    if "num_puzzles" not in results:
        if budget := figures["budget"]:
            say("budget: " + ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in budget.items()))
        Console().print(_language_table(results))
        return
    show_puzzles(results)


def _language_table(results: Figures) -> Table:
    """Return a table with one row per task. Counts and flags appear only if they say something."""
    table = Table()
    for column in ("task", "figure", "value", "other figures"):
        table.add_column(column, justify="right" if column == "value" else "left", overflow="fold")
    for task, figures in results.items():
        shown = {name: v for name, v in figures.items() if name != "label" and v is not None and v is not False}
        if (num_all := shown.pop("num_all", None)) is not None:
            shown["num_items"] = f"{shown['num_items']:,} of {num_all:,}"
        if not shown.get("num_cut"):
            shown.pop("num_cut", None)
        named = [(name.removeprefix("num_").replace("_", " "), _short(value)) for name, value in shown.items()]
        named = named or [("", "")]
        add_row(table, task, *named[0], ", ".join(f"{name} {value}" for name, value in named[1:]))
    return table


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"
