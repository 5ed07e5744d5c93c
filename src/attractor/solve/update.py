"""One evaluation of ``update``: at all equations, or only at some."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attractor.errors import ConfigError
from attractor.solve.array_ops import Array, known_between, known_empty, row_norm, to_array, to_tensor, where_rows
from attractor.solve.layout import Layout
from attractor.solve.randomness import RepeatedRandomness

Update = Callable[[Tensor], Tensor]


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


class Repeated(RepeatedRandomness, PartialUpdate):
    """An update whose random numbers are the same at every call of one solve. Under autocast it keeps the dtype of y."""

    @classmethod
    def of(cls, update: Update) -> "Repeated":
        return update if isinstance(update, cls) else cls(update)

    @property
    def can_be_partial(self) -> bool:
        """Masks of dropout have the shape of the complete state, so an update that draws is always complete."""
        return isinstance(self.function, PartialUpdate) and not self.draws

    def __call__(self, y: Tensor) -> Tensor:
        return _without_autocast(super().__call__(y), y)

    def at(self, y: Tensor, index: Tensor) -> Tensor:
        assert isinstance(self.function, PartialUpdate)
        return _without_autocast(self.function.at(y, index), y)


def _without_autocast(out: Tensor, y: Tensor) -> Tensor:
    kind = y.device.type
    if isinstance(out, Tensor) and torch.is_autocast_enabled(kind) and out.dtype == torch.get_autocast_dtype(kind):
        return out.to(y.dtype)
    return out


class Point(NamedTuple):
    """One evaluation: ``f = update(y)``, ``g = f − y``, (N, D); ``residual_norm = ‖g‖``, ``residual = ‖g‖/‖y‖``, (N,).

    ``y`` has the compute dtype. The residuals are measured at the rounded ``y`` that ``update`` was given.
    """

    y: Tensor
    f: Tensor
    g: Tensor
    residual_norm: Tensor
    residual: Tensor

    @classmethod
    def initial(cls, y: Tensor) -> "Point":
        """Return the point before the first evaluation. Its residuals are NaN."""
        unknown = y.new_full(y.shape[:1], torch.nan)
        return cls(y, y, torch.zeros_like(y), unknown, unknown)

    def replace_rows(self, mask: Array, other: "Point") -> "Point":
        """Return this point with the equations in ``mask`` (N,) from ``other``."""
        if known_empty(mask):
            return self
        return Point(*(where_rows(mask, new, old) for old, new in zip(self, other, strict=True)))


def evaluate(update: Repeated, y: Tensor, layout: Layout, needed: Array, last: Point) -> Point:
    """Call ``update`` at ``y`` (N, D); if it is partial, only where ``needed`` (N,), and with ``last`` elsewhere."""
    if not update.can_be_partial or bool(needed.all()):
        return _measure(y, _checked_call(update, layout.unflatten(y)), layout)
    index = to_tensor(needed).nonzero()[:, 0]
    argument = y[index].to(layout.dtype).view(-1, *layout.equation_shape)
    part = _measure(y[index], _checked_call(update, argument, index), layout)
    return Point(y, *(old.index_copy(0, index, new) for old, new in zip(last[1:], part[1:], strict=True)))


def _checked_call(update: Repeated, y: Tensor, *index: Tensor) -> Tensor:
    version = None if y.is_inference() else y._version
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


def _measure(y: Tensor, out: Tensor, layout: Layout) -> Point:
    f = out.reshape(y.shape).to(layout.compute_dtype)
    g = f - y
    seen = y if layout.dtype == layout.compute_dtype else y.to(layout.dtype).to(layout.compute_dtype)
    residual_norm = _norm((g if seen is y else f - seen).detach(), 0.0)
    norm = _norm(seen.detach(), 1e-8)
    return Point(y, f, g, residual_norm, residual_norm / norm)


def _norm(x: Tensor, low: float) -> Tensor:
    """Return the norms of the rows, without scaling them where all are known to lie between ``low`` and 1e18."""
    norm = torch.linalg.vector_norm(x, dim=1)
    if known_between(to_array(norm), low, 1e18):
        return norm
    norm = row_norm(x)
    return torch.where(norm > 0, norm, torch.finfo(x.dtype).tiny) if low else norm
