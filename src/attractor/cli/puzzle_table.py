"""Print the figures of a puzzle model as a table."""

from typing import Any

from attractor.cli.output import add_row, make_table, say, show

Figures = dict[str, Any]


def show_puzzles(figures: Figures) -> None:
    """Print a row per depth, a column per breadth, a section for every way to choose or to check an answer, and a summary."""
    title = f"right in every cell, in % of {figures['num_puzzles']:,} unseen puzzles"
    breadths = [f"{'breadth' * (row == 0)}\n{breadth}" for row, breadth in enumerate(figures["breadths"])]
    columns = ("\nchosen by", "\ndepth", *breadths, "median\nresidual", "score's\nAUROC")
    table = make_table(columns, title=title, simple=True)
    single = max(figures["breadths"]) == 1  # nothing to choose
    selections = figures["selections"][:1] if single else figures["selections"]
    sections = {selection: figures[_key("exact_by", selection)] for selection in selections}
    sections |= {f"{s}*": figures[_key("right_by", s)] for s in selections if _key("right_by", s) in figures}
    if not single:
        sections["any restart"] = figures["any_exact"]
    for name, accuracies in sections.items():
        aurocs = figures.get(_key("", name)[1:] + "_auroc")
        for row, depth in enumerate(figures["depths"]):
            residual = figures["median_residual"][row]
            more = ["–" if residual is None else f"{residual:.0e}"] if name == selections[0] else [""]
            more += [] if aurocs is None else ["–" if aurocs[row] is None else f"{aurocs[row]:.3f}"]
            cells = [f"{100 * by_depth[row]:.1f}" for by_depth in accuracies]
            add_row(table, name if row == 0 else "", str(depth), *cells, *more)
        table.add_section()
    show(table)
    if any(name.endswith("*") for name in sections):
        say("* any correct answer counts, not only the known one")
    intervals = figures.get(_key("interval_by", selections[0]))
    shown = " (95 % interval {:.1f} to {:.1f})".format(*(100 * end for end in intervals[-1][-1])) if intervals else ""
    say(
        f"chosen by {selections[0]} at depth {figures['depths'][-1]} and breadth {figures['breadths'][-1]}: "
        f"{100 * figures[_key('exact_by', selections[0])][-1][-1]:.1f} %{shown}, "
        f"{figures['evaluations'][-1][-1]:,.0f} evaluations per puzzle"
    )
    if "pass@1" in figures:
        say(
            f"tasks by the votes of all copies: pass@1 {100 * figures['pass@1']:.1f} %, pass@2 {100 * figures['pass@2']:.1f} %"
        )
    _show_search(figures)


def _key(prefix: str, selection: str) -> str:
    return f"{prefix}_{selection.replace('-', '_')}"


def _show_search(figures: Figures) -> None:
    """Print the accuracy of puzzles by rating, with 95 % intervals, and the figures of a search."""
    if rows := figures.get("by_rating"):
        ways = [way for way in ("one_start", "restarts", "search") if way in rows[0]]
        table = make_table(("rating", "puzzles", *(way.replace("_", " ") for way in ways)), simple=True)
        for row in rows:
            end = " and more" if row["below"] is None else f" to {row['below']:g}"
            add_row(table, f"{row['from']:g}{end}", row["num_puzzles"], *(_percent(row[way]) for way in ways))
        show(table)
    if found := figures.get("search"):
        e = found["evaluations"]
        say(
            f"search: {_percent(found)} %; evaluations per puzzle: mean {e['mean']:.0f}, median {e['median']:.0f}, "
            f"90 % below {e['quantile_90']:.0f}, most {e['max']:.0f}; guesses: mean {found['guesses']:.1f}"
        )


def _percent(share: Figures) -> str:
    low, high = share["interval"]
    return f"{100 * share['exact']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
