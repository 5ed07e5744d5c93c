"""Reading checkpoints: every reader checks what it reads; the one that unpickles checks everything."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

from attractor.errors import CheckpointError
from attractor.training.checkpoint.folder import read_checksums, read_json, verify, verify_files, verify_weights
from attractor.training.checkpoint.ranks import reason


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Load the weights for inference into ``model``: all of them or none."""
    verify_weights(checkpoint)
    weights = _tensors(checkpoint / "model.safetensors")
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    if {k: v.shape for k, v in weights.items()} != wanted:
        odd = sorted(k for k in wanted.keys() | weights.keys() if k not in weights or weights[k].shape != wanted.get(k))
        raise CheckpointError(
            f"{checkpoint / 'model.safetensors'}: does not fit its run.json (first difference: {odd[0]}); "
            "the checkpoint is damaged or was edited."
        )
    model.load_state_dict(weights)


def load(
    checkpoint: Path, state: dict[str, Any], *, group: dist.ProcessGroup | None = None, partial: bool = False
) -> None:
    """Verify the whole checkpoint and load its training state into the tensors of ``state``, on all ranks of ``group`` together.

    The number of ranks, and how tensors are sharded over them, may differ from when it was written.

    Parameters
    ----------
    state
        Of the same structure as what was saved; numbers in it are replaced.
    partial
        Whether ``state`` may be some parts of what was saved.

    Raises
    ------
    CheckpointError
        On all ranks: for files that are missing, damaged or foreign (see :func:`verify`), and for a state of another structure.
    """
    verify(checkpoint, group)
    try:
        dcp.load(
            state,
            checkpoint_id=checkpoint / "training",
            planner=DefaultLoadPlanner() if partial else _Exact(),
            process_group=group,
            no_dist=group is None,
        )
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{checkpoint / 'training'}: does not fit this run ({reason(error)}).") from error


def load_own(checkpoint: Path) -> list[dict[str, Tensor]]:
    """Return every rank's own tensors, in rank order."""
    names = [f"rank-{rank:05d}.safetensors" for rank in range(_training(checkpoint)["world_size"])]
    verify_files(checkpoint, read_checksums(checkpoint), names)
    return [_tensors(checkpoint / name) for name in names]


def load_scalars(checkpoint: Path) -> dict[str, float]:
    """Return the numbers."""
    scalars: dict[str, float] = _training(checkpoint)["scalars"]
    return scalars


def _training(checkpoint: Path) -> dict[str, Any]:
    verify_files(checkpoint, read_checksums(checkpoint), ["training.json"])
    return read_json(checkpoint / "training.json")


class _Exact(DefaultLoadPlanner):
    """Refuses a state that lacks something saved, where PyTorch refuses only the contrary."""

    def create_local_plan(self) -> Any:
        assert self.metadata is not None
        if unknown := sorted(self.metadata.state_dict_metadata.keys() - self.state_dict.keys()):
            raise CheckpointError(f"it has {unknown[0]}, which this run has not")
        return super().create_local_plan()


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read as safetensors ({error}); the checkpoint is damaged.") from error
