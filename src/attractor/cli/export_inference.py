"""``attractor convert``: what inference needs of a checkpoint, without what only training does."""

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from attractor.experiment.loading import load_language_model, quiet
from attractor.experiment.puzzles import is_reasoner, load_reasoner
from attractor.files import new_folder, require_free
from attractor.training import find_checkpoint
from attractor.training.checkpoint import inference_files, load, save_weights, write_checksums


def convert(checkpoint: Path, out: Path, /, latest: bool = False) -> None:
    """Write the model of a checkpoint alone: safetensors, configuration and tokenizer, as all commands read them.

    Args:
        checkpoint: A checkpoint's folder, or a run's folder, whose newest is taken.
        out: The folder to write; must not exist.
        latest: Take the weights of the last step instead of the averaged ones.
    """
    require_free(out)
    source = find_checkpoint(checkpoint)
    names = inference_files(source)
    model = _latest(source) if latest else None
    with new_folder(out) as part:
        for name in names:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, part / name)
        if model is not None:
            with quiet():
                _save(model, part)
        write_checksums(part)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    Console().print(f"{out}: {size / 1e6:,.1f} MB of {source}", soft_wrap=True, highlight=False)


def _latest(checkpoint: Path) -> Any:
    model: Any = load_reasoner(checkpoint).model if is_reasoner(checkpoint) else load_language_model(checkpoint)[0]
    load(checkpoint, {"model": model.state_dict()}, partial=True)
    return model


def _save(model: Any, folder: Path) -> None:
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        save_weights(model.state_dict(), folder)
