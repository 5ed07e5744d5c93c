"""``attractor train``: a recipe by name, changed by path."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from attractor.cli.runs import claim, train_mazes
from attractor.config import override
from attractor.recipes import recipe as find_recipe
from attractor.train import Progress, find_checkpoint


def train(
    recipe: tyro.conf.Positional[str],
    /,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = (),
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train a recipe.

    Args:
        recipe: Its name: maze or maze-control.
        set: Settings to change, such as train.seed=1 model.update.width=48.
        out: Folder to write; by default runs/RECIPE.
        resume: Continue the newest checkpoint in the folder.
        overwrite: Write into a folder that is not empty.
    """
    config = override(find_recipe(recipe), set)
    out = out or Path("runs") / recipe
    if resume:
        find_checkpoint(out)
    claim(out, resume=resume, overwrite=overwrite)
    with Progress(recipe) as progress:
        train_mazes(config, out, callbacks=[progress], resume=resume)
    Console().print(f"checkpoint: {find_checkpoint(out)}")
