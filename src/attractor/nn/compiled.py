"""Compilation of the parts of a model that run again and again, in place and for training.

A solve decides between evaluations what to do next, so a complete solve is not one graph. One evaluation is, and all
blocks of a class share it, whatever their weights are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RECOMPILE_LIMIT = 64


class CompiledBlock(nn.Module):
    """A module that :func:`compile_blocks` compiles: ``forward`` is one graph, without breaks.

    Compiled code is made for one shape, so it runs only where the shape stays the same: in training. In evaluation,
    lengths, caches and the number of active tokens or puzzles differ from call to call, and a block runs uncompiled.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._compiled_call_impl is None or not self.has_fixed_shape(*args, **kwargs):
            return self._call_impl(*args, **kwargs)
        # Compiled code does not run under a mode such as the one that repeats random numbers in a solve.
        if torch._C._len_torch_dispatch_stack() > 0:
            return self._call_impl(*args, **kwargs)
        with _compiler_settings():
            return self._compiled_call_impl(*args, **kwargs)

    def has_fixed_shape(self, *args: Any, **kwargs: Any) -> bool:
        """Return whether calls with such arguments have the same shapes every time."""
        return self.training


@contextmanager
def _compiler_settings() -> Iterator[None]:
    """Change two settings of the compiler for one call, which may compile.

    - All models of a process share the compiled code of a block's class, and each needs a graph for every kind of
      layer, mask and gradient mode. The default limit of 8 graphs is too low.
    - Some gradients use a backward graph several times (``Neumann``, ``Implicit``). A graph with donated buffers allows
      one use.

    The settings are assigned directly, because ``torch._dynamo.config.patch`` takes longer than a small layer.
    """
    dynamo, functorch = torch._dynamo.config, torch._functorch.config
    limit, donated = dynamo.recompile_limit, functorch.donated_buffer
    dynamo.recompile_limit, functorch.donated_buffer = max(RECOMPILE_LIMIT, limit), False
    try:
        yield
    finally:
        dynamo.recompile_limit, functorch.donated_buffer = limit, donated


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compile every :class:`CompiledBlock` of ``model`` in place, with the ``options`` of ``torch.compile``.

    Names and weights stay. Copies of the model are not compiled.
    """
    if isinstance(model, CompiledBlock):  # one graph, with all blocks inside it
        model.compile(dynamic=False, fullgraph=True, **options)
    else:
        for child in model.children():
            compile_blocks(child, **options)


def unwrap_model(model: nn.Module) -> Any:
    """Return the model with its own methods and parameter names, whether or not DDP wraps it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def input_device(model: nn.Module) -> torch.device:
    """Return the device on which the model reads its input, also where ``accelerate`` keeps the weights elsewhere."""
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    return next((p.device for p in model.parameters()), torch.device("cpu")) if device is None else torch.device(device)
