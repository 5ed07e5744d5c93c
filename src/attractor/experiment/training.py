"""Train a recipe from Python: ``attractor.train``."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attractor import recipes
from attractor.config import override, to_dict
from attractor.errors import CheckpointError, ConfigError
from attractor.experiment.loading import LoadedLanguageModel, load_language_model, local_folder
from attractor.experiment.puzzles import train_reasoner
from attractor.experiment.solve import LoadedReasoner
from attractor.files import check_output_dir, require_separate
from attractor.progress import TrainingProgress
from attractor.recipes import FROM_CHECKPOINT, PuzzleRecipe
from attractor.training import Callback, Preemption, find_checkpoint, init_distributed, make_logger

if TYPE_CHECKING:
    from attractor.recipes import Recipe


def train(
    recipe: "str | Recipe",
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    init: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    logger: str = "none",
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    pause: Preemption | None = None,
) -> LoadedReasoner | LoadedLanguageModel:
    """Train a recipe and return the trained model, with averaged weights if the recipe averages them.

    Under ``torchrun``, every process calls this with the same arguments.

    Parameters
    ----------
    data
        The folder of prepared text or puzzles, or a file of conversations for a model with a chat template (``init``).
        Recipes of puzzles generate their own puzzles without it.
    out
        The folder to write, by default ``runs/NAME``. It must be empty unless ``resume`` or ``overwrite``.
    overrides
        Settings to change, see :func:`attractor.recipes.override`. They are applied after ``init``.
    init
        For language models: the checkpoint to start from. It then decides the sizes of the model.
    logger
        ``"tensorboard"``, ``"wandb"``, ``"trackio"`` or ``"none"``.
    pause
        Decides when to write a checkpoint and return early. While the run lasts, it also handles SIGTERM and SIGINT.
        ``pause.requested`` tells whether the run was paused.

    Raises
    ------
    ConfigError, DataError, CheckpointError
        If an argument, the data or a checkpoint is invalid. Nothing is written then.
    DivergedError
        If training diverges. The last checkpoint stays.
    """
    name = recipe if isinstance(recipe, str) else None
    config = recipes.get(recipe) if isinstance(recipe, str) else recipe
    overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
    start = None if init is None else _load_start(init, config, name)
    if name in FROM_CHECKPOINT and start is None:
        raise ConfigError(f"{name} starts from a checkpoint: give --init FOLDER, such as attractor retrofit writes.")
    if start is not None:
        config = _fit(config, start)
    config = override(config, overrides)
    folder = None if data is None else Path(data)
    if isinstance(config, PuzzleRecipe):
        if folder is not None and any(str(setting).startswith("data.") for setting in overrides):
            raise ConfigError("settings data.* describe puzzles to generate; with --data FOLDER leave them out.")
    elif folder is None:
        what = "FILE, of conversations" if name == "language/chat" else "FOLDER, made with attractor data prepare"
        raise ConfigError(f"{name or 'this recipe'} needs text: give --data {what}.")
    if name is None and out is None:
        raise ConfigError("give the folder to write as out.")
    target = Path("runs") / str(name) if out is None else Path(out)
    if resume:
        find_checkpoint(target)
    if init is not None:
        require_separate(target, Path(init))
    curves = make_logger(logger, target, name or target.name, to_dict(config))
    with init_distributed(config.train.timeout_seconds) as distributed, pause or nullcontext():
        distributed.on_main_process(lambda: check_output_dir(target, resume=resume, overwrite=overwrite))
        with TrainingProgress(name or target.name, enabled=progress and distributed.is_main) as bar:
            loop: dict[str, Any] = {
                "callbacks": [callback for callback in (bar, curves, *callbacks) if callback is not None],
                "resume": resume,
                "should_pause": pause or (lambda: False),
                "distributed": distributed,
            }
            trained: LoadedReasoner | LoadedLanguageModel
            if isinstance(config, PuzzleRecipe):
                trained = train_reasoner(config, target, data=folder, **loop)
            else:
                from attractor.experiment.language import train_language

                assert folder is not None
                trained = train_language(config, folder, target, start=start, **loop)
        if pause is not None:
            [asked] = distributed.total([float(pause.requested)])  # any rank may have been asked
            pause.requested = bool(asked)
        return replace(trained, path=find_checkpoint(target)) if distributed.is_main else trained


def _fit(config: "Recipe", start: LoadedLanguageModel) -> "Recipe":
    assert not isinstance(config, PuzzleRecipe)  # or init was refused
    model_config: Any = start.model.config
    return recipes.fit_to_model(config, model_config)


def _load_start(init: str | Path, config: "Recipe", name: str | None) -> LoadedLanguageModel:
    from attractor.models.language import LanguageModel

    if isinstance(config, PuzzleRecipe):
        raise ConfigError(f"{name or 'this recipe'} starts from random weights; leave out --init.")
    loaded = load_language_model(local_folder(init))
    if not isinstance(loaded.model, LanguageModel):
        raise CheckpointError(
            f"{init}: holds a {type(loaded.model).__name__}; convert it with attractor retrofit first."
        )
    if getattr(loaded.model, "hf_quantizer", None) is not None:
        raise CheckpointError(f"{init}: holds quantised weights, which cannot be trained; give the original weights.")
    return loaded
