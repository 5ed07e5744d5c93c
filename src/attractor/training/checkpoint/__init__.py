"""Checkpoints: complete or absent folders, verified before they are read, written while training continues.

::

    step-00000500/
      run.json                  metadata: what the run is
      model.safetensors ...     weights for inference, and the other files that ``save_model`` writes
      training/                 state that all ranks share, in shards: PyTorch's distributed checkpoint
      rank-00000.safetensors    tensors of one rank: random state, position in the data, carried states
      training.json             numbers, and how many ranks there were
      checksums.json            size and CRC-32 of every other file, written last

Inference reads only JSON and safetensors. The index of the shards in ``training/`` is a pickle; it is read with a list of
the few classes that it needs, so that no code in it runs. Checksums protect against accidents, not against attacks.
"""

from attractor.training.checkpoint.folder import (
    checkpoints_in,
    find_checkpoint,
    inference_files,
    read_run,
    verify,
    verify_inference,
)
from attractor.training.checkpoint.reading import load, load_model, load_rank_tensors, load_scalars
from attractor.training.checkpoint.writing import Checkpoints, save_weights

__all__ = [
    "Checkpoints",
    "checkpoints_in",
    "find_checkpoint",
    "inference_files",
    "load",
    "load_model",
    "load_rank_tensors",
    "load_scalars",
    "read_run",
    "save_weights",
    "verify",
    "verify_inference",
]
