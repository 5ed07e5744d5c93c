"""Weights of a folder: safetensors or a pickle of tensors, in one file or in shards."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from attractor.errors import CheckpointError
from attractor.files import first_line, member, read_json

NAMES = ("model.safetensors", "pytorch_model.bin", "model.pt")
ADVICE = "give the folder of a complete checkpoint"


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of the folder by name, on the CPU.

    They are looked for in the order of ``NAMES``, and one file before shards that ``*.index.json`` names.
    Pickles are read as tensors only: no code in them runs.

    Raises
    ------
    CheckpointError
        For folders without weights, missing shards, and shards that do not match their index.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return _read(member(folder, name, CheckpointError, folder))
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    raise CheckpointError(f"{folder}: holds no weights; give a folder with {' or '.join(NAMES)}, or with their shards.")


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = read_json(index, CheckpointError, advice=ADVICE).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{index}: has no weight_map from tensors to files; the checkpoint is damaged.")
    shards = sorted(set(places.values()))
    for shard in shards:  # check all before reading the first
        if not member(index.parent, shard, CheckpointError, index).is_file():
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
