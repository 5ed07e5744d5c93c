"""Operations on N equations at once: what is decided about them, and what is chosen by it.

Decisions are many operations on few numbers. On a CPU numpy makes them, at a fifth of what they cost torch. Elsewhere torch
makes them on the device, which the host does not wait for; and so it does where gradients are tracked. Both make
them by the same lines, on *plain* values: arrays here, tensors there.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Plain = Any  # a numpy array, or a tensor


def plain(x: Tensor) -> Plain:
    """Return ``x`` for deciding. An array shares its memory; never write into it."""
    return x.detach().numpy() if x.is_cpu and not torch.is_grad_enabled() else x


def tensor(x: Plain) -> Tensor:
    """Return a plain value as a tensor."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def namespace(x: Plain) -> Any:
    """Return the module whose functions take ``x``: numpy or torch, which agree on many names and on the order of arguments."""
    return np if isinstance(x, np.ndarray) else torch


def fill(x: Plain, mask: Plain, value: float) -> Plain:
    """Return ``x`` with ``value`` where ``mask`` holds."""
    return np.where(mask, value, x) if isinstance(x, np.ndarray) else x.masked_fill(mask, value)


def is_empty(mask: Plain) -> bool:
    """Whether ``mask`` is known to hold nowhere: on a CPU looking is free, and most masks are empty."""
    return (isinstance(mask, np.ndarray) or mask.is_cpu) and not mask.any()


def choose(mask: Plain, a: Tensor, b: Tensor) -> Tensor:
    """``torch.where`` with a mask (N,) for tensors (N, ...)."""
    return b if is_empty(mask) else torch.where(tensor(mask).view(-1, *[1] * (b.ndim - 1)), a, b)
