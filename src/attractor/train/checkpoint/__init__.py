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

from attractor.train.checkpoint.folder import (
    amend,
    find_checkpoint,
    inference_files,
    read_run,
    seal,
    verify,
    verify_weights,
)
from attractor.train.checkpoint.reading import load, load_model, load_own, load_scalars
from attractor.train.checkpoint.writing import Checkpoints, save_weights

__all__ = [
    "Checkpoints",
    "amend",
    "find_checkpoint",
    "inference_files",
    "load",
    "load_model",
    "load_own",
    "load_scalars",
    "read_run",
    "save_weights",
    "seal",
    "verify",
    "verify_weights",
]
