"""Choose the cheapest budget of a language model that loses little, and store it in the checkpoint."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from attractor.data.text import read_held_out
from attractor.errors import CheckpointError, ConfigError
from attractor.evaluation.calibrate import Calibration
from attractor.evaluation.calibrate import calibrate as find_budget
from attractor.evaluation.text import DEFAULT_WINDOW, max_length
from attractor.experiment.language_evaluation import held_out_paths
from attractor.experiment.loading import LoadedLanguageModel, load_language_model, local_folder
from attractor.files import read_json, write_json
from attractor.files.manifest import amended_file
from attractor.progress import TaskProgress


def calibrate(
    model: str | Path | LoadedLanguageModel,
    data: str | Path | Sequence[str | Path],
    *,
    max_loss_increase: float = 0.005,
    field: str = "text",
    limit: int = 8,
    characters: int = 20_000,
    batch_size: int = 8,
    progress: bool = False,
) -> Calibration:
    """Find the cheapest budget whose held-out loss is close to the lowest. Calls without a budget then use it.

    The budget becomes that of the loaded model, and is stored in the ``config.json`` of its checkpoint.

    Parameters
    ----------
    model
        A loaded attractor model, or what :func:`attractor.load` takes.
    data
        Files or folders of held-out documents, or folders of prepared text, whose split ``val`` is read.
    max_loss_increase
        The largest increase of the loss, as a fraction of the lowest loss of all budgets.
    field
        The field of a record that holds the text.
    limit, characters
        The largest number of documents, and of characters from the beginning of each.

    Raises
    ------
    ConfigError, DataError, CheckpointError
        If an argument, the data or the checkpoint is invalid.
    """
    for name, value in (("limit", limit), ("characters", characters), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name}={value}: give a whole number from 1 up.")
    paths = held_out_paths((data,) if isinstance(data, str | Path) else tuple(data))
    loaded = model if isinstance(model, LoadedLanguageModel) else load_language_model(local_folder(model))
    language_model: Any = loaded.model
    with TaskProgress(enabled=progress) as bars:
        found = find_budget(
            language_model,
            loaded.tokenizer,
            [text[:characters] for text in islice(read_held_out(paths, field), limit)],
            length=min(max_length(language_model), DEFAULT_WINDOW),
            max_loss_increase=max_loss_increase,
            batch_size=batch_size,
            advance=bars.follow("budgets"),
        )
    language_model.config.budget = found.chosen.budget
    with amended_file(loaded.path, "config.json") as part:
        write_json(part, {**read_json(loaded.path / part.name, CheckpointError), "budget": found.chosen.budget})
    return found
