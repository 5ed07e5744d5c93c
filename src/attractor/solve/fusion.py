"""Compiled bookkeeping: on an accelerator, the decisions after each evaluation become a few kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attractor.solve.array_ops import Array, transforms

_enabled: ContextVar[bool] = ContextVar("fused", default=False)


@contextmanager
def fused_bookkeeping() -> Iterator[None]:
    """Within this context, solves on an accelerator without gradients compile their bookkeeping.

    An evaluation after some equations have converged then launches about a third of the kernels, with the same decisions
    bit for bit. The first solve of a kind takes a minute to compile. On a CPU, where bookkeeping uses NumPy, it changes
    nothing.
    """
    token = _enabled.set(True)
    try:
        yield
    finally:
        _enabled.reset(token)


def is_fused() -> bool:
    """Whether this is inside :func:`fused_bookkeeping`."""
    return _enabled.get()


def fused(function: Callable[..., Any], like: Array) -> Callable[..., Any]:
    """Return the compiled ``function`` where that is wanted and possible for arrays such as ``like``."""
    if torch.compiler.is_compiling() or not is_fused():
        return function  # dynamo traces no context variable
    if not isinstance(like, Tensor) or torch.is_grad_enabled() or transforms():
        return function
    return _compiled(function)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
