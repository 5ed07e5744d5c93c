"""``attractor train``: train a recipe."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

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
        recipe: The name of a recipe, such as sudoku/6x6 or language/tiny; attractor recipes lists all.
        set: Settings to change, such as train.seed=1 model.tolerance=1e-3; attractor show RECIPE lists all.
        data: The folder that attractor data prepare, sudoku, mazes or arc wrote; or, for a model with a chat template, a file
            of conversations, one {"messages": [{"role": ..., "content": ...}, ...]} per line. Without it, puzzle recipes
            other than arc generate their own puzzles.
        init: For language models: the checkpoint to start from. It decides the sizes of the model. attractor retrofit
            writes such a checkpoint.
        out: The folder to write; by default runs/RECIPE.
        resume: Continue the newest checkpoint in the folder.
        pause_after: Seconds after which to write a checkpoint and stop. SIGTERM and Ctrl-C do the same. Use --resume
            to continue; the learning-rate schedule does not change.
        overwrite: Write into a folder that is not empty.
        logger: Where to log curves: tensorboard, wandb, trackio or none.
    """
    from attractor.experiment.training import train as run
    from attractor.training import Preemption, read_run

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
    text: Any = read_run(trained.path).get("text", {})
    if "num_conversations" in text:
        say(
            f"{text['num_conversations']:,} conversations with {text['num_learnt']:,} tokens of answers; {text['num_cut']:,} "
            f"were cut at text.length, {text['num_left_out']:,} left out because no answer remained."
        )
    folder = out or Path("runs") / recipe
    say(f"checkpoint: {trained.path} (also {folder / 'latest'})")
    if pause.requested:
        options: list[Any] = ["--data", data, "--init", init, "--out", folder, "--logger", logger]
        given = [word for pair in zip(options[::2], options[1::2], strict=True) if pair[1] is not None for word in pair]
        words = ["attractor", "train", recipe, *given, *(["--set", *set] if set else []), "--resume"]
        say(f"paused; go on with: {shlex.join(map(str, words))}")
