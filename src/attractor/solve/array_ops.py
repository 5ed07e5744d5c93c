"""Operations on the bookkeeping of N equations, for NumPy arrays and for tensors.

The bookkeeping is many operations on few numbers. On a CPU, NumPy does them in a fifth of the time that PyTorch needs.
On an accelerator, and where gradients are tracked, tensors do them, and the host does not wait. The same code serves
both: an *array* here is a NumPy array or a tensor.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

Array = Any  # np.ndarray | Tensor; their operators agree, which no common type expresses


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return the floating-point dtype for sums whose condition is a square: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def to_array(x: Tensor) -> Array:
    """Return ``x`` for bookkeeping. A NumPy array shares the memory of ``x``: do not write into it."""
    if not x.is_cpu or torch.is_grad_enabled() or transforms():
        return x
    return (x.detach() if x.requires_grad else x).numpy()


def to_tensor(x: Array) -> Tensor:
    """Return an array as a tensor."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def row_norm(x: Tensor) -> Tensor:
    """Return the Euclidean norms (N,) of the rows of ``x`` (N, D), also where their squares overflow or underflow.

    A norm is finite where the row is: one above the largest number of the dtype is that number.
    """
    peak = row_peak(x)
    scale = _power_of_two(peak.detach())
    norm = torch.linalg.vector_norm(x / scale[:, None], dim=1) * scale
    return norm.clamp_max(torch.finfo(x.dtype).max) + 0 * peak


def row_peak(x: Tensor) -> Tensor:
    """Return the largest magnitudes (N,) in the rows of ``x`` (N, D); 0 where D is 0."""
    return x.abs().amax(1) if x.shape[1] else x.sum(1)  # on a CPU, the maximum norm takes eight times as long


def row_scale(x: Tensor) -> Tensor:
    """Return the powers of two (N, 1) that divide the rows of ``x`` (N, D) to about one. This changes no digit."""
    return _power_of_two(row_peak(x.detach()))[:, None]


def _power_of_two(peak: Tensor) -> Tensor:
    info = torch.finfo(peak.dtype)
    scale = torch.exp2(torch.log2(peak.clamp(info.tiny, info.max / 2)).floor())  # ONNX has no frexp
    return torch.where(peak > 0, scale, 1)


def known_between(x: Array, low: float, high: float) -> bool:
    """Whether all numbers are known to lie between the two. On an accelerator the answer is False."""
    if isinstance(x, np.ndarray):
        return x.size > 0 and bool(low < np.minimum.reduce(x)) and bool(np.maximum.reduce(x) < high)
    return is_readable(x) and len(x) > 0 and bool(low < x.min()) and bool(x.max() < high)


def transforms() -> list[str]:
    """Return the names of the function transforms (``torch.func``) around this call, outermost first; or "Compile"."""
    if torch.compiler.is_compiling():
        return ["Compile"]
    if torch._C._functorch.peek_interpreter_stack() is None:
        return []
    stack = torch._C._functorch.get_interpreter_stack() or []
    return [str(interpreter.key()).removeprefix("TransformType.") for interpreter in stack]


def is_readable(x: Tensor) -> bool:
    """Whether the host can read ``x`` without waiting for a device: it is on the CPU, and not inside ``vmap``."""
    return x.is_cpu and not {"Vmap", "Compile"}.intersection(transforms())


def count(mask: Array) -> tuple[float, int]:
    """Return how many elements are True, and how many there are, over all mapped dimensions. Waits for the device."""
    if not isinstance(mask, Tensor) or not transforms():
        return float(mask.sum()), math.prod(mask.shape)
    with temporarily_clear_interpreter_stack():
        while torch._C._functorch.is_functorch_wrapped_tensor(mask):
            mask = torch._C._functorch.get_unwrapped(mask)
        return float(mask.sum()), mask.numel()


def namespace(x: Array) -> Any:
    """Return the module with the functions for ``x``: ``numpy`` or ``torch``. Many names and signatures agree."""
    return np if isinstance(x, np.ndarray) else torch


def fmax(a: Array, b: Array) -> Array:
    """Return the larger of two numbers, and the number where the other is NaN."""
    if torch.compiler.is_exporting():  # ONNX has no fmax
        return torch.where((b > a) | a.isnan(), b, a)
    return namespace(a).fmax(a, b)


def masked_fill(x: Array, mask: Array, value: float) -> Array:
    """Return ``x`` with ``value`` where ``mask`` is True."""
    return np.where(mask, value, x) if isinstance(x, np.ndarray) else x.masked_fill(mask, value)


def and_not(a: Array, b: Array) -> Array:
    """Return ``a & ~b`` for masks, in one operator (which PyTorch's compiler for CPUs does not have for masks)."""
    return a & ~b if torch.compiler.is_compiling() else a > b


def lookup(table: Array, i: Array, j: Array | None = None) -> Array:
    """Return ``table[i]`` or ``table[i, j]``."""
    if isinstance(table, np.ndarray):  # three times as fast as indexing
        return table.take(i if j is None else i * table.shape[1] + j)
    return table[i] if j is None else table[i, j]


def known_empty(mask: Array) -> bool:
    """Whether ``mask`` is known to be False everywhere. On an accelerator the answer is False: asking would wait."""
    return (isinstance(mask, np.ndarray) or is_readable(mask)) and not mask.any()


def with_rows(old: Array, rows: Tensor, new: Array) -> Array:
    """Return ``old`` (N, ...) with ``new`` (M, ...) in the rows (M,)."""
    if isinstance(old, np.ndarray):
        old = old.copy()
        old[rows.numpy()] = new
        return old
    return old.index_copy(0, rows, new)


def where_rows(mask: Array | None, a: Array, b: Array) -> Array:
    """``where`` with a mask (N,) for two tensors (N, ...) or arrays (N,). ``None`` is a mask that is False everywhere."""
    if mask is None:
        return b
    if isinstance(b, np.ndarray):
        return np.where(mask, a, b)
    return torch.where(to_tensor(mask).view(-1, *[1] * (b.ndim - 1)), a, b)
