"""The parts of a model that run over and over, and how they are compiled: in place, and for training.

A solve decides between evaluations what comes next, so the whole of it is no graph. What it evaluates is one, and all blocks of
a kind share it, whatever their weights.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class CompiledBlock(nn.Module):
    """What :func:`compile_blocks` compiles: ``forward`` is one graph, without breaks.

    Compiled code is made for one shape and runs where the shape stays: in training. In evaluation, where lengths, caches and the
    number of puzzles or tokens that still move differ from call to call, a block runs as it is written.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (super().__call__ if self.is_steady(*args, **kwargs) else self._call_impl)(*args, **kwargs)

    def is_steady(self, *args: Any, **kwargs: Any) -> bool:
        """Whether calls like this one come again in the same shape."""
        return self.training


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compile every block of ``model`` in place; names and weights stay. Copies run as they are written.

    Parameters
    ----------
    options
        Of ``torch.compile``, such as ``backend``.
    """
    # All models of a process share the code of a block's class, and each takes a graph for every kind, mask and gradient mode.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    # Gradients that are series go through one backward pass several times, which therefore must not use up what it is given.
    torch._functorch.config.donated_buffer = False
    if isinstance(model, CompiledBlock):  # with all that lies within it
        model.compile(dynamic=False, fullgraph=True, **options)
    else:
        for child in model.children():
            compile_blocks(child, **options)


def unwrap_model(model: nn.Module) -> Any:
    """Return the model itself, with its own methods and parameter names, whether or not DDP wraps it."""
    return model.module if isinstance(model, DistributedDataParallel) else model
