"""``attractor calibrate``: choose a language model's budget."""

from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from attractor.cli.output import add_row, make_table, say, show


def calibrate(
    checkpoint: str,
    /,
    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")],
    max_loss_increase: float = 0.005,
    field: str = "text",
    limit: int = 8,
    characters: int = 20_000,
    batch_size: int = 8,
) -> None:
    """Find the cheapest budget with a small loss increase, and store it in the checkpoint. All commands then use it.

    Args:
        checkpoint: The folder of a checkpoint, or of a run, whose newest checkpoint is taken.
        data: Files or folders of held-out documents, or folders of prepared text, whose split val is read.
        max_loss_increase: The largest increase of the loss, as a fraction of the lowest loss of all budgets.
        field: The field of a record that holds the text.
        limit: The largest number of documents.
        characters: The largest number of characters of each, from its beginning.
        batch_size: Sequences in a batch.
    """
    options = locals()  # every option by its name
    from attractor.experiment.calibration import calibrate as run
    from attractor.experiment.loading import load_language_model, local_folder

    loaded = load_language_model(local_folder(options.pop("checkpoint")))
    found = run(loaded, **options, progress=True)
    show(_table(found))
    say(f"{loaded.path}: stored {_name(found.chosen.budget)}, which generate and evaluate now use by default.")


def _table(found: Any) -> Table:
    columns = ("budget", "bits/byte", "loss increase", "evaluations", "MFLOP/token", "")
    table = make_table(columns, title=f"{found.reference.score.num_bytes:,} bytes of held-out text")
    for trial in found.budgets:
        add_row(
            table,
            _name(trial.budget),
            f"{trial.score.bits_per_byte:.4f}",
            f"{trial.score.nats / found.reference.score.nats - 1:+.2%}",
            f"{trial.score.evaluations:.2f}",
            f"{trial.flops_per_token / 1e6:.2f}",
            "chosen" if trial is found.chosen else "lowest loss" if trial is found.reference else "",
        )
    return table


def _name(budget: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in budget.items())
