"""``attractor train``: a recipe by name, changed by path."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from attractor.config import override, to_dict
from attractor.errors import ConfigError
from attractor.experiment.language import load_start, train_language
from attractor.experiment.puzzles import train_reasoner
from attractor.files import check_output_dir
from attractor.progress import TrainingProgress
from attractor.recipes import RETROFIT, LanguageRecipe, PuzzleRecipe, started_from
from attractor.recipes import recipe as find_recipe
from attractor.training import Preemption, find_checkpoint, init_distributed, make_logger


def train(
    recipe: tyro.conf.Positional[str],
    /,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = (),
    data: Path | None = None,
    init: Path | None = None,
    out: Path | None = None,
    resume: bool = False,
    pause_after: float | None = None,
    overwrite: bool = False,
    track: str = "tensorboard",
) -> None:
    """Train a recipe; on several processes when started by torchrun, see docs/scale.md.

    Args:
        recipe: Its name: maze, maze-control, sudoku/6x6, sudoku/9x9, sudoku/extreme or maze/hard, the last four also with -trm,
            -hrm or -transformer; or language/SIZE[-FAMILY] with tiny, 60m, 140m, 370m or 770m, and transformer, looped or deq,
            such as language/tiny or language/60m-looped; or language/retrofit.
        set: Settings to change, such as train.seed=1 model.tolerance=1e-3.
        data: The folder that attractor data prepare, sudoku or mazes wrote. Recipes of puzzles draw their own without it.
        init: For language: the checkpoint to start from, which then decides the model's sizes; attractor retrofit makes one.
        out: Folder to write; by default runs/RECIPE.
        resume: Continue the newest checkpoint in the folder.
        pause_after: Seconds after which to write a checkpoint and leave; the schedule stays. SIGTERM and Ctrl-C do the same.
        overwrite: Write into a folder that is not empty.
        track: Where curves are drawn: tensorboard, wandb, trackio or none.
    """
    config = find_recipe(recipe)
    start = None
    if init is not None:
        if not isinstance(config, LanguageRecipe):
            raise ConfigError(f"{recipe} starts from nothing; leave out --init.")
        start = load_start(init)
        config = started_from(config, start.model.config)
    elif recipe == RETROFIT:
        raise ConfigError(f"{recipe} starts from a checkpoint: give --init FOLDER, made with attractor retrofit.")
    config = override(config, set)
    if data is not None and isinstance(config, PuzzleRecipe) and any(s.startswith("data.") for s in set):
        raise ConfigError("settings data.* say what a recipe draws itself; with --data FOLDER leave them out.")
    out = out or Path("runs") / recipe
    if isinstance(config, LanguageRecipe) and data is None:
        raise ConfigError(f"{recipe} needs text: give --data FOLDER, made with attractor data prepare.")
    if resume:
        find_checkpoint(out)
    drawn = make_logger(track, out, recipe, to_dict(config))
    with init_distributed() as distributed, Preemption(seconds=pause_after) as should_pause:
        distributed.on_main_process(lambda: check_output_dir(out, resume=resume, overwrite=overwrite))
        with TrainingProgress(recipe) if distributed.is_main else nullcontext() as progress:
            callbacks = [c for c in (progress, drawn) if c is not None]
            if isinstance(config, LanguageRecipe):
                assert data is not None
                train_language(
                    config,
                    data,
                    out,
                    callbacks=callbacks,
                    resume=resume,
                    should_pause=should_pause,
                    start=start,
                    distributed=distributed,
                )
            else:
                train_reasoner(
                    config,
                    out,
                    data=data,
                    callbacks=callbacks,
                    resume=resume,
                    should_pause=should_pause,
                    distributed=distributed,
                )
        [asked] = distributed.total([float(should_pause.requested)])  # of any rank, for all
        if distributed.is_main:
            paused = (
                f"; paused, go on with: attractor train {recipe} --out {out} --resume and the same settings"
                if asked
                else ""
            )
            Console().print(f"checkpoint: {find_checkpoint(out)}{paused}", soft_wrap=True)
