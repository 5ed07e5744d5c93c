"""``attractor recipes`` and ``attractor show``: what can be trained, and with which settings."""

import json
from typing import Annotated, Literal

import tyro
from rich.console import Console

from attractor.cli.output import add_row, make_table, say


def recipes() -> None:
    """List the recipes: what each trains, its weights and its time."""
    from attractor.recipes import summaries

    table = make_table((), simple=True)
    columns: dict[str, Literal["left", "right"]] = {"recipe": "left", "weights": "right", "length": "right"}
    for name, justify in columns.items():
        table.add_column(name, justify=justify, no_wrap=True)
    table.add_column("trains", overflow="fold")
    table.add_column("suffixes", overflow="fold")
    for found in summaries():
        num = found.num_weights
        weights = "" if num is None else f"{num:,}" if num < 1e6 else f"{num / 1e6:.3g}M"
        add_row(table, found.name, weights, found.length, found.text, " ".join(found.variants))
    Console().print(table)
    say("Minutes are those of two CPU cores. With a suffix it is another recipe, such as sudoku/6x6-trm.")
    say("attractor show RECIPE: its settings. attractor cost RECIPE: its cost. attractor train RECIPE: train it.")


def show(
    recipe: str,
    /,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = (),
) -> None:
    """Show every setting of a recipe with its value and its meaning.

    Args:
        recipe: The name of a recipe, such as sudoku/6x6 or language/tiny; attractor recipes lists all.
        set: Settings to change first, such as train.seed=1.
    """
    from attractor import recipes
    from attractor.config import describe

    table = make_table((), simple=True)
    for name in ("setting", "value", "meaning"):
        table.add_column(name, no_wrap=name == "setting", overflow="fold")
    above = ""
    for path, value, meaning in describe(recipes.override(recipes.get(recipe), set)):
        add_row(table, path, json.dumps(value), "(as above)" if meaning == above else meaning)
        above = meaning
    Console().print(table)
    say(f"Change them with --set, such as: attractor train {recipe} --set train.seed=1 train.log_every=5")
