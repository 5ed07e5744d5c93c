"""Weights of a folder: safetensors or a pickle of tensors, in one file or in shards."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from attractor.errors import CheckpointError, ConfigError

NAMES = ("model.safetensors", "pytorch_model.bin")


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in ``file``. Raises CheckpointError where there is none."""
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else str(error)
        raise CheckpointError(
            f"{file}: cannot be read as JSON ({reason}); give a complete checkpoint's folder."
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: holds no JSON object; the checkpoint is damaged.")
    return data


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the folder by name, on the CPU.

    ``model.safetensors`` comes before ``pytorch_model.bin``, and one file before shards named by ``*.index.json``.
    Pickles are read as tensors only: no code in them runs.

    Raises
    ------
    CheckpointError
        For folders without weights, missing shards, and shards that do not match their index.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return _read(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    raise CheckpointError(f"{folder}: holds no weights; give a folder with {' or '.join(NAMES)}, or with their shards.")


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensors to files; the checkpoint is damaged.")
    shards = sorted(set(places.values()))
    for shard in shards:  # check all before reading the first
        if Path(shard).name != shard or not (index.parent / shard).is_file():
            raise CheckpointError(f"{index.parent / shard}: this shard is missing; {index.name} names it.")
    weights: dict[str, Tensor] = {}
    for shard in shards:
        found, wanted = _read(index.parent / shard), {name for name, place in places.items() if place == shard}
        for name in sorted(found.keys() ^ wanted):
            what = "lacks" if name in wanted else "holds, against the index,"
            raise CheckpointError(f"{index.parent / shard}: {what} the tensor {name!r}; the checkpoint is damaged.")
        weights |= found
    return weights


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files and pickles of other objects raise many kinds
        raise CheckpointError(f"{file}: cannot be read as tensors ({first_line(error)}).") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{file}: is not a dictionary of tensors; give weights only, not a training state.")
    return weights


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the error's class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def require_free(out: Path) -> None:
    """Raise a ConfigError if ``out`` exists."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out}: exists already; choose another folder, or remove this one first.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``out``. It becomes ``out`` at the end, or is removed after an error.

    Raises
    ------
    ConfigError
        If ``out`` exists or cannot be written.
    """
    require_free(out)
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error}); choose another place.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
