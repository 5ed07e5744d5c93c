"""Checkpoints: folders that are whole or absent, checked before they are read, written while training goes on.

::

    step-00000500/
      run.json                  what it is
      model.safetensors ...     the weights for inference, beside whatever else ``save_model`` writes
      training/                 state common to all ranks, in shards: PyTorch's distributed checkpoint
      rank-00000.safetensors    tensors of one rank's own: random state, carry, position in the data
      training.json             numbers, and how many ranks there were
      checksums.json            size and CRC-32 of every other file, written last

Inference reads ``run.json`` and safetensors alone. The shards in ``training/`` have a pickle for an index, and unpickling runs
code: resume only checkpoints of people you trust. Checksums guard against accidents, not against them.
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
from attractor.training.checkpoint.reading import load, load_model, load_own, load_scalars
from attractor.training.checkpoint.writing import Checkpoints, save_weights

__all__ = [
    "Checkpoints",
    "find_checkpoint",
    "inference_files",
    "load",
    "load_model",
    "load_own",
    "load_scalars",
    "read_run",
    "save_weights",
    "update_checksums",
    "verify",
    "verify_weights",
    "write_checksums",
]
