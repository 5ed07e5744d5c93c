"""Checkpoints: complete or absent folders, verified before they are read, written while training continues.

::

    step-00000500/
      run.json                  metadata: what the run is
      model.safetensors ...     weights for inference, and the other files that ``save_model`` writes
      training/                 state that all ranks share, in shards: PyTorch's distributed checkpoint
      rank-00000.safetensors    tensors of one rank: random state, position in the data, carried states
      training.json             numbers, and how many ranks there were
      checksums.json            size and CRC-32 of every other file, written last

Inference reads only ``run.json`` and safetensors. The index of the shards in ``training/`` is a pickle, and unpickling
runs code: resume only checkpoints of people you trust. Checksums protect against accidents, not against attacks.
"""

from attractor.training.checkpoint.folder import (
    find_checkpoint,
    inference_files,
    read_run,
    update_checksums,
    verify,
    verify_weights,
    write_checksums,
)
from attractor.training.checkpoint.reading import load, load_model, load_rank_tensors, load_scalars
from attractor.training.checkpoint.writing import Checkpoints, save_weights

__all__ = [
    "Checkpoints",
    "find_checkpoint",
    "inference_files",
    "load",
    "load_model",
    "load_rank_tensors",
    "load_scalars",
    "read_run",
    "save_weights",
    "update_checksums",
    "verify",
    "verify_weights",
    "write_checksums",
]
