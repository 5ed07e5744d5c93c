"""``attractor evaluate``: evaluate a model on text, tasks or puzzles."""

from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from attractor.cli.output import add_row, make_table, say, show, show_search

Figures = dict[str, Any]


def evaluate(
    checkpoint: str,
    /,
    tasks: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="TASK ...")] = None,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")] = (),
    field: str | None = None,
    bundle: Path | None = None,
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
    seed: int | None = None,
    search: bool = False,
    out: Path | None = None,
) -> None:
    """Evaluate a model on unseen text, tasks or puzzles, and print the results.

    Args:
        checkpoint: The folder of a checkpoint, of a run, or of any causal language model of transformers; or a name on
            the hub.
        tasks: For language models: text (default), lambada, core, the label of one CORE task, or harness:NAME for a
            task of lm-evaluation-harness.
        data: For the task text: files or folders of held-out documents, or folders of prepared text, whose split val is
            read. For puzzles: a prepared folder, whose split test is read, or a csv.
        field: For the task text: the field of a record that holds the text; by default text.
        bundle: For lambada and CORE tasks: the folder of the evaluation bundle, which holds core.yaml.
        include_path: For harness:NAME: a folder with YAML files of more tasks.
        depth: For language models: evaluations per token, instead of a tolerance; 0 decodes the proposal.
        tolerance: For language models: the relative residual at which a token has converged, instead of the model's.
        max_evaluations: For language models: the largest number of evaluations, instead of the model's.
        length: For the task text: tokens in the sliding window; by default the model's positions, at most 2048.
        stride: For the task text: tokens by which the window moves; by default half of them.
        limit: The largest number of documents, items of each task, or puzzles.
        batch_size: Sequences or puzzles in a batch.
        depths: For puzzles: numbers of evaluations, in rising order; by default 1 2 4 8 16 32 64.
        breadths: For puzzles: numbers of restarts from which one answer is chosen, in rising order; by default 1.
        seed: For puzzles: the seed of the initial states; by default 0.
        search: For Sudokus: also search with guesses, until an answer follows the rules.
        out: A JSON file to write the figures to.
    """
    options = locals()  # every option by its name
    from attractor.experiment.evaluation import evaluate as run

    figures = run(options.pop("checkpoint"), **options, progress=True)
    results = figures["results"]
    if "exact_by_residual" not in results:
        if budget := figures["budget"]:
            say("budget: " + ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in budget.items()))
        Console().print(_language_table(results))
        return
    show(_puzzle_table(results))
    show_search(results)
    if "right_by_residual" in results:
        say("* any correct answer counts, not only the known one")


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


def _puzzle_table(figures: Figures) -> Table:
    """Return a table with a row per depth, a column per breadth, and a section for every way to choose or to check an answer."""
    title = f"right in every cell, in % of {figures['num_puzzles']:,} unseen puzzles"
    breadths = [f"{'breadth' * (row == 0)}\n{breadth}" for row, breadth in enumerate(figures["breadths"])]
    columns = ("\nchosen by", "\ndepth", *breadths, "median\nresidual", "residual's\nAUROC")
    table = make_table(columns, title=title, simple=True)
    sections = {"residual": figures["exact_by_residual"]}
    if max(figures["breadths"]) > 1:
        sections["majority"] = figures["exact_by_majority"]
    if "right_by_residual" in figures:
        sections["residual*"] = figures["right_by_residual"]
    for name, accuracies in sections.items():
        for row, depth in enumerate(figures["depths"]):
            residual, auroc = figures["median_residual"][row], figures["residual_auroc"][row]
            more = ("–" if residual is None else f"{residual:.0e}", "–" if auroc is None else f"{auroc:.3f}")
            cells = [f"{100 * by_depth[row]:.1f}" for by_depth in accuracies]
            add_row(table, name if row == 0 else "", str(depth), *cells, *(more if name == "residual" else ()))
        table.add_section()
    return table
