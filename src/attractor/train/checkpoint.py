"""Checkpoints: a folder of safetensors and JSON, written beside its place and renamed into it, so that it is whole or absent.

``run.json`` says what it is, ``model.safetensors`` holds the averaged weights for inference, and ``training.safetensors`` with
``training.json`` what only a resumed run needs. No pickle anywhere.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attractor.errors import CheckpointError

FORMAT = "attractor-1"
KEEP = 2  # newest checkpoints kept in a run's folder


def save_checkpoint(
    out: Path,
    step: int,
    describe: dict[str, Any],
    save_model: Callable[[Path], None],
    training: dict[str, Tensor],
    scalars: dict[str, float],
) -> Path:
    """Write ``out/step-NNNNNNNN`` atomically, ``save_model(folder)`` included, and remove all but the newest checkpoints."""
    final = out / f"step-{step:08d}"
    part = out / f".part-{os.getpid()}-{final.name}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "run.json").write_text(json.dumps({"format": FORMAT, **describe}, indent=2) + "\n")
    (part / "training.json").write_text(json.dumps(scalars, indent=2) + "\n")
    save_model(part)
    _save(training, part / "training.safetensors")
    if final.exists():  # written again by a resumed run: the old one goes only once the new one is in its place
        aside = out / f".part-{os.getpid()}-old-{final.name}"
        final.rename(aside)
    part.rename(final)
    for old in [*sorted(out.glob("step-*"))[:-KEEP], *out.glob(".part-*")]:
        shutil.rmtree(old)
    return final


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write ``folder/model.safetensors``, which :func:`load_model` reads."""
    _save(model.state_dict(), folder / "model.safetensors")


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    # Clones, because safetensors refuses tensors that share memory, as tied weights do.
    save_file({k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}, file)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that ``path`` means: itself, or the newest one in a run's folder."""
    if (path / "run.json").is_file():
        return path
    found = sorted(p for p in path.glob("step-*") if (p / "run.json").is_file())
    if not found:
        raise CheckpointError(f"{path}: no checkpoint here; give a folder with run.json, or a run's folder.")
    return found[-1]


def read_run(checkpoint: Path, kind: str | None = None) -> dict[str, Any]:
    """Return what ``run.json`` describes, after checking that it is ours and of that kind."""
    file = checkpoint / "run.json"
    try:
        data = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}); the checkpoint is damaged.") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise CheckpointError(f"{file}: not a checkpoint of this package (its format is not {FORMAT!r}).")
    if kind is not None and data.get("kind") != kind:
        raise CheckpointError(f"{file}: holds a checkpoint of kind {data.get('kind')!r}, but {kind!r} is needed here.")
    return data


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Load the averaged weights into ``model``: all of them or none."""
    weights = _tensors(checkpoint / "model.safetensors")
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    if {k: v.shape for k, v in weights.items()} != wanted:
        odd = sorted(k for k in wanted.keys() | weights.keys() if k not in weights or weights[k].shape != wanted.get(k))
        raise CheckpointError(
            f"{checkpoint / 'model.safetensors'}: does not fit its run.json (first difference: {odd[0]}); "
            "the checkpoint is damaged or was edited."
        )
    model.load_state_dict(weights)


def load_training(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, float]]:
    """Return everything that a run needs to go on: description, tensors, scalars."""
    try:
        scalars = json.loads((checkpoint / "training.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{checkpoint / 'training.json'}: cannot be read ({error}).") from error
    return read_run(checkpoint), _tensors(checkpoint / "training.safetensors"), scalars


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error}); the checkpoint is damaged.") from error
