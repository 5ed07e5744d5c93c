"""Read checkpoints. Every function verifies the files that it reads."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from attractor.errors import CheckpointError
from attractor.files import read_json
from attractor.files.manifest import read_checksums, verify_files
from attractor.training.checkpoint.folder import ADVICE, verify, verify_inference
from attractor.training.checkpoint.ranks import short_reason


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Load the weights for inference into ``model``: all of them or none."""
    verify_inference(checkpoint)
    weights = _load_tensors(checkpoint / "model.safetensors")
    expected = {k: v.shape for k, v in model.state_dict().items()}
    found = {k: v.shape for k, v in weights.items()}
    if found != expected:
        odd = sorted(k for k in expected.keys() | found.keys() if found.get(k) != expected.get(k))
        raise CheckpointError(
            f"{checkpoint / 'model.safetensors'}: does not fit its run.json (first difference: {odd[0]}); "
            "the checkpoint is damaged or was edited."
        )
    model.load_state_dict(weights)


def load(
    checkpoint: Path, state: dict[str, Any], *, group: dist.ProcessGroup | None = None, partial: bool = False
) -> None:
    """Verify a checkpoint and load its training state into the tensors of ``state``, on all ranks of ``group``.

    The number of ranks, and how tensors are sharded over them, may differ from the run that wrote it.

    Parameters
    ----------
    state
        Has the structure of the saved state. Numbers in it are replaced.
    partial
        Whether ``state`` may have only some entries of the saved state.

    Raises
    ------
    CheckpointError
        On all ranks, if a file is missing, damaged or foreign (see :func:`verify`), or the structures differ.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    from attractor.training.checkpoint.shards import load_shards

    verify(checkpoint, group)
    try:
        load_shards(state, checkpoint / "training", group, partial=partial)
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{checkpoint / 'training'}: does not fit this run ({short_reason(error)}).") from error


def load_rank_tensors(checkpoint: Path) -> list[dict[str, Tensor]]:
    """Return the tensors that each rank saved for itself, in rank order."""
    names = [f"rank-{rank:05d}.safetensors" for rank in range(_training_json(checkpoint)["world_size"])]
    verify_files(checkpoint, read_checksums(checkpoint), names)
    return [_load_tensors(checkpoint / name) for name in names]


def load_scalars(checkpoint: Path) -> dict[str, float]:
    """Return the saved numbers."""
    scalars: dict[str, float] = _training_json(checkpoint)["scalars"]
    return scalars


def _training_json(checkpoint: Path) -> dict[str, Any]:
    verify_files(checkpoint, read_checksums(checkpoint), ["training.json"])
    return read_json(checkpoint / "training.json", CheckpointError, advice=ADVICE)


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error}); {ADVICE}.") from error
