"""One evaluation of ``update``: at all equations, or only at some."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attractor.errors import ConfigError
from attractor.solve.array_ops import (
    Array,
    known_between,
    namespace,
    row_norm,
    row_peak,
    to_array,
    to_tensor,
    transforms,
    where_rows,
    with_rows,
)
from attractor.solve.layout import Layout
from attractor.solve.packing import Packing, is_from_autocast
from attractor.solve.randomness import RepeatedRandomness
from attractor.solve.stop import Norm

Update = Callable[[Any], Any]
# Norms between these are exact although their squares are summed: no square that matters under- or overflows.
_UNSCALED = {torch.float32: (1e-12, 1e18), torch.float64: (1e-137, 1e153)}


class PartialUpdate(ABC):
    """An update that can be computed for some equations only. The others keep the values of their last evaluation."""

    @abstractmethod
    def __call__(self, y: Tensor) -> Tensor:
        """Return ``update(y)`` for all equations. The first call of a solve is this one."""

    @abstractmethod
    def at(self, y: Tensor, index: Tensor) -> Tensor:
        """Return ``update`` for the equations ``index`` (M,), whose new values are ``y`` (M, *shape of one equation).

        ``index`` counts the leading dimensions of ``y0`` as if they were one, in ascending order.
        """


class Adapted(PartialUpdate):
    """The update of a user, as a function of one tensor whose dtype it keeps, also under autocast.

    With ``packing`` the state of ``function`` is nested. With ``has_aux`` the function returns ``(y_next, aux)``, and
    ``aux`` is what its last call returned.
    """

    def __init__(self, function: Update, packing: Packing | None = None, has_aux: bool = False) -> None:
        self.function, self.packing, self.has_aux = function, packing, has_aux
        self.aux: Any = None

    @property
    def is_partial(self) -> bool:
        return isinstance(self.function, PartialUpdate) and self.packing is None

    def __call__(self, y: Tensor) -> Tensor:
        if self.packing is not None:
            return self.packing.pack(self._without_aux(self.function(self.packing.unpack(y))))
        return _in_dtype_of(y, self._without_aux(self.function(y)))

    def at(self, y: Tensor, index: Tensor) -> Tensor:
        assert isinstance(self.function, PartialUpdate)
        return _in_dtype_of(y, self._without_aux(self.function.at(y, index)))

    def _without_aux(self, out: Any) -> Any:
        if not self.has_aux:
            return out
        if not isinstance(out, tuple) or len(out) != 2:
            raise ConfigError(f"fixed_point(has_aux=True): update must return (y_next, aux), not {type(out).__name__}.")
        out, self.aux = out
        return out


def _in_dtype_of(y: Tensor, out: Tensor) -> Tensor:
    if isinstance(out, Tensor) and out.dtype != y.dtype and is_from_autocast(out):
        return out.to(y.dtype)
    return out


class Repeated(RepeatedRandomness, PartialUpdate):
    """An update whose random numbers are the same at every call of one solve."""

    function: Adapted

    @classmethod
    def of(cls, update: Update) -> "Repeated":
        if isinstance(update, cls):
            return update
        return cls(update if isinstance(update, Adapted) else Adapted(update))

    @property
    def can_be_partial(self) -> bool:
        """Masks of dropout have the shape of the complete state, so an update that draws is always complete."""
        return self.function.is_partial and not self.draws and not transforms()

    def at(self, y: Tensor, index: Tensor) -> Tensor:
        return self.function.at(y, index)


class Point(NamedTuple):
    """One evaluation: ``f = update(y)``, ``g = f − y``, (N, D); ``residual_norm = ‖g‖``, ``residual = ‖g‖/‖y‖``, (N,).

    ``y`` has the compute dtype. The residuals are measured at the rounded ``y`` that ``update`` was given.
    """

    y: Tensor
    f: Tensor
    g: Tensor
    residual_norm: Array
    residual: Array

    @classmethod
    def initial(cls, y: Tensor) -> "Point":
        """Return the point before the first evaluation. Its residuals are NaN."""
        unknown = to_array(y.new_full(y.shape[:1], torch.nan))
        return cls(y, y, torch.zeros_like(y), unknown, unknown)

    def replace_rows(self, mask: Array | None, other: "Point") -> "Point":
        """Return this point with the equations in ``mask`` (N,) from ``other``."""
        if mask is None:
            return self
        return Point(*(where_rows(mask, new, old) for old, new in zip(self, other, strict=True)))


class Evaluation:
    """How one solve evaluates ``update`` and measures residuals.

    ``‖y‖`` counts as at least ``smallest`` (N,), the rounding unit times its size at the start, so that an equilibrium
    of exactly zero has a residual.
    """

    def __init__(self, update: Repeated, layout: Layout, norm: Norm) -> None:
        self.update, self.layout = update, layout
        self._norm = _norm_function(norm)
        self._smallest: Array | None = None

    def at(self, y: Tensor, needed: Array | None, last: Point) -> Point:
        """Call ``update`` at ``y`` (N, D), or, if it is partial, only where ``needed`` (N,), with ``last`` elsewhere."""
        update, layout = self.update, self.layout
        if self._smallest is None or needed is None or bool(needed.all()):
            f = layout.reshaped(_checked_call(update, layout.unflatten(y)), y.shape)
            f = f if f.dtype == y.dtype else f.to(y.dtype)
            if self._smallest is None:
                info = torch.finfo(y.dtype)
                size = torch.maximum(to_tensor(self._size(y)), to_tensor(self._size(f)))
                self._smallest = to_array((info.eps * size.nan_to_num(0, 0)).clamp_min(info.tiny))
            return self._measure(y, f, self._smallest)
        rows = to_tensor(needed).nonzero()[:, 0]
        argument = y[rows].to(layout.dtype).view(-1, *layout.equation_shape)
        f = _checked_call(update, argument, rows).reshape(len(rows), y.shape[1]).to(layout.compute_dtype)
        part = self._measure(y[rows], f, self._smallest[to_array(rows)])
        return Point(y, *(with_rows(old, rows, new) for old, new in zip(last[1:], part[1:], strict=True)))

    def _size(self, x: Tensor) -> Array:
        return self._norm(x.detach() if x.requires_grad else x)

    def _measure(self, y: Tensor, f: Tensor, smallest: Array) -> Point:
        g = f - y
        seen = self.layout.rounded(y)
        residual_norm, size = self._size(g if seen is y else f - seen), self._size(seen)
        return Point(y, f, g, residual_norm, residual_norm / namespace(size).maximum(size, smallest))


def _checked_call(update: Repeated, y: Tensor, *index: Tensor) -> Tensor:
    version = None if torch.compiler.is_compiling() or y.is_inference() else y._version
    out = update.at(y, *index) if index else update(y)
    if not isinstance(out, Tensor) or out.shape != y.shape or out.dtype != y.dtype:
        got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"fixed_point: update returned {got} for y of {tuple(y.shape)} {y.dtype}; "
            "it must return a tensor of the same shape and dtype."
        )
    if version is not None and y._version != version:
        raise ConfigError("fixed_point: update changed its argument in place; it must return a new tensor.")
    return out


def _norm_function(norm: Norm) -> Callable[[Tensor], Array]:
    if norm == "l2":
        return _l2_norm
    if norm == "rms":
        return lambda x: _l2_norm(x) / max(x.shape[1], 1) ** 0.5
    if norm == "max":
        return lambda x: to_array(row_peak(x))

    def checked(x: Tensor) -> Array:
        result = norm(x)
        if not isinstance(result, Tensor) or result.shape != x.shape[:1] or not result.is_floating_point():
            got = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
            raise ConfigError(
                f"fixed_point: the norm returned {got} for states of {tuple(x.shape)}; it must return one floating-point "
                f"number for each of the {len(x)} equations."
            )
        return to_array(result)

    return checked


def _l2_norm(x: Tensor) -> Array:
    """Return the norms of the rows, without scaling them where all are known to be far from over- and underflow.

    On an accelerator they have float64, whose range needs no scaling.
    """
    if not x.is_cpu and x.dtype == torch.float32 and x.device.type != "mps":
        return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    if x.shape[1] == 1:
        return abs(to_array(x)[:, 0])
    norm = to_array(torch.linalg.vector_norm(x, dim=1))
    return norm if known_between(norm, *_UNSCALED[x.dtype]) else to_array(row_norm(x))
