"""``attractor train``: train a recipe."""

import os
from pathlib import Path
from typing import Annotated

import tyro

from attractor.cli.output import say


def train(
    recipe: tyro.conf.Positional[str],
    /,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH=VALUE ...")] = (),
    data: Path | None = None,
    init: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    pause_after: float | None = None,
    overwrite: bool = False,
    logger: str = "tensorboard",
) -> None:
    """Train a recipe. Start it with torchrun to train on several processes.

    Args:
        recipe: Its name: maze, maze-control, sudoku/6x6, sudoku/9x9, sudoku/extreme or maze/hard, the last four also
            with -trm, -hrm or -transformer; or language/SIZE[-FAMILY] with tiny, 60m, 140m, 370m or 770m, and
            transformer, looped or deq, such as language/tiny or language/60m-looped; or language/retrofit.
        set: Settings to change, such as train.seed=1 model.tolerance=1e-3.
        data: The folder that attractor data prepare, sudoku or mazes wrote. Recipes of puzzles generate their own
            without it.
        init: For language models: the checkpoint to start from. It decides the sizes of the model. attractor retrofit
            makes one.
        out: The folder to write; by default runs/RECIPE.
        resume: Continue the newest checkpoint in the folder.
        pause_after: Seconds after which to write a checkpoint and stop. SIGTERM and Ctrl-C do the same. The schedule
            stays.
        overwrite: Write into a folder that is not empty.
        logger: Where to draw curves: tensorboard, wandb, trackio or none.
    """
    from attractor.experiment.training import train as run
    from attractor.training import Preemption

    pause = Preemption(seconds=pause_after)
    trained = run(
        recipe,
        data,
        out,
        overrides=set,
        init=init,
        resume=resume,
        overwrite=overwrite,
        logger=logger,
        pause=pause,
    )
    if os.environ.get("RANK", "0") != "0":
        return
    folder = out or Path("runs") / recipe
    paused = f"; paused, go on with: attractor train {recipe} --out {folder} --resume and the same settings"
    say(f"checkpoint: {trained.path}{paused if pause.requested else ''}")
