"""``attractor train``: a recipe by name, changed by path."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from attractor.cli.runs import claim, train_language, train_mazes
from attractor.config import override, to_dict
from attractor.errors import ConfigError
from attractor.recipes import LanguageRecipe
from attractor.recipes import recipe as find_recipe
from attractor.train import Progress, find_checkpoint, tracker


def train(
    recipe: tyro.conf.Positional[str],
    /,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = (),
    data: Path | None = None,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    track: str = "tensorboard",
) -> None:
    """Train a recipe.

    Args:
        recipe: Its name: maze, maze-control, or language/SIZE[-FAMILY] with tiny, 60m, 140m, 370m or 770m, and
            transformer, looped or deq, such as language/tiny or language/60m-looped.
        set: Settings to change, such as train.seed=1 model.tolerance=1e-3.
        data: For language: the folder that attractor data prepare wrote.
        out: Folder to write; by default runs/RECIPE.
        resume: Continue the newest checkpoint in the folder.
        overwrite: Write into a folder that is not empty.
        track: Where curves are drawn: tensorboard, wandb, trackio or none.
    """
    config = override(find_recipe(recipe), set)
    out = out or Path("runs") / recipe
    if isinstance(config, LanguageRecipe) and data is None:
        raise ConfigError(f"{recipe} needs text: give --data FOLDER, made with attractor data prepare.")
    if not isinstance(config, LanguageRecipe) and data is not None:
        raise ConfigError(f"{recipe} draws its own data; leave out --data.")
    if resume:
        find_checkpoint(out)
    claim(out, resume=resume, overwrite=overwrite)
    drawn = tracker(track, out, recipe, to_dict(config))
    with Progress(recipe) as progress:
        callbacks = [progress, *([drawn] if drawn else [])]
        if isinstance(config, LanguageRecipe):
            assert data is not None
            train_language(config, data, out, callbacks=callbacks, resume=resume)
        else:
            train_mazes(config, out, callbacks=callbacks, resume=resume)
    Console().print(f"checkpoint: {find_checkpoint(out)}")
