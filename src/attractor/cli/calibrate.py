"""``attractor calibrate``: choose how much solving is enough, and let generation keep to it."""

import os
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from attractor.data.text import read_held_out
from attractor.errors import ConfigError
from attractor.evaluation.calibrate import Calibration
from attractor.evaluation.calibrate import calibrate as choose
from attractor.evaluation.text import DEFAULT_WINDOW, max_length
from attractor.experiment.loading import load_language_model
from attractor.progress import TaskProgress
from attractor.training import find_checkpoint, update_checksums


def calibrate(
    checkpoint: Path,
    /,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")],
    within: float = 0.005,
    field: str = "text",
    limit: int = 8,
    characters: int = 20_000,
    batch_size: int = 8,
) -> None:
    """Find the cheapest budget that loses little, and store it in the checkpoint's generation config.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken.
        data: Files or folders of held-out documents, or prepared folders, of which the split val is read.
        within: The loss that may be given up, as a share of that of the equilibrium.
        field: Where the text stands in a record.
        limit: At most so many documents.
        characters: At most so many of each, from its beginning.
        batch_size: Sequences at a time.
    """
    for name, value in (("limit", limit), ("characters", characters), ("batch-size", batch_size)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: give a whole number from 1 up.")
    folder = checkpoint if (checkpoint / "config.json").is_file() else find_checkpoint(checkpoint)
    model: Any
    model, tokenizer = load_language_model(folder)
    texts = [text[:characters] for text in islice(read_held_out(data, field), limit)]
    with TaskProgress() as bars:
        found = choose(
            model,
            tokenizer,
            texts,
            length=min(max_length(model), DEFAULT_WINDOW),
            max_loss_increase=within,
            batch_size=batch_size,
            advance=bars.follow("budgets"),
        )
    console = Console()
    console.print(_table(found))
    model.store_budget(**found.chosen.budget)
    part = folder / ".generation_config.json.part"
    model.generation_config.save_pretrained(folder, config_file_name=part.name)
    os.replace(part, folder / "generation_config.json")
    update_checksums(folder, "generation_config.json")
    console.print(f"{folder}: generation keeps to {_name(found.chosen.budget)}", soft_wrap=True)


def _table(found: Calibration) -> Table:
    view = Table(title=f"{found.reference.score.num_bytes:,} bytes of held-out text", title_justify="left")
    for column in ("budget", "bits/byte", "more", "evaluations", "MFLOP/token", ""):
        view.add_column(column, justify="right", no_wrap=True)
    for trial in found.budgets:
        view.add_row(
            _name(trial.budget),
            f"{trial.score.bits_per_byte:.4f}",
            f"{trial.score.nats / found.reference.score.nats - 1:+.2%}",
            f"{trial.score.evaluations:.2f}",
            f"{trial.flops_per_token / 1e6:.2f}",
            "chosen" if trial is found.chosen else "own" if trial is found.reference else "",
        )
    return view


def _name(budget: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in budget.items())
