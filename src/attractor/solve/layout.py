"""The layout of a solve: how the tensor ``y0`` divides into rows, equations and unknowns."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from attractor.errors import ConfigError
from attractor.solve.array_ops import Array, lookup, namespace
from attractor.solve.packing import Packing

_WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """``num_rows`` independent rows of ``row_length`` equations; N = ``num_rows · row_length``.

    ``leading_shape`` is the part of ``shape`` that counts equations, the rest is the shape of one equation.
    """

    shape: torch.Size
    leading_shape: torch.Size
    dtype: torch.dtype
    num_rows: int
    row_length: int
    causal: bool
    packing: Packing | None = None

    @classmethod
    def of(cls, y0: Tensor, equation_dims: int | None, causal: bool, packing: Packing | None = None) -> "Layout":
        """Return the layout of ``y0``.

        Raises
        ------
        ConfigError
            If ``y0`` is not a floating-point tensor, or has too few dimensions.
        """
        if not isinstance(y0, Tensor) or not y0.is_floating_point():
            what = y0.dtype if isinstance(y0, Tensor) else type(y0).__name__
            raise ConfigError(f"fixed_point: y0 must be a floating-point tensor, not {what}.")
        if equation_dims is None:
            equation_dims = min(max(y0.ndim - 1, 0), 1)
        if not 0 <= equation_dims <= y0.ndim:
            raise ConfigError(
                f"fixed_point(equation_dims={equation_dims}): y0 has shape {tuple(y0.shape)}; "
                f"say how many of its {y0.ndim} trailing dimensions form one equation."
            )
        leading = y0.shape[: y0.ndim - equation_dims]
        if causal and not leading:
            raise ConfigError(
                f"fixed_point(causal=True): with equation_dims={equation_dims}, y0 of shape {tuple(y0.shape)} has no "
                "dimension left for time; lower equation_dims."
            )
        num_rows = prod(leading[:-1]) if causal else (leading[0] if leading else 1)
        row_length = leading[-1] if causal else (prod(leading[1:]) if leading else 1)
        return cls(
            shape=y0.shape,
            leading_shape=leading,
            dtype=y0.dtype,
            num_rows=num_rows,
            row_length=row_length,
            causal=causal,
            packing=packing,
        )

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the state, residuals and mixing: float32 or wider."""
        return _WIDER.get(self.dtype, self.dtype)

    @property
    def equation_shape(self) -> torch.Size:
        return self.shape[len(self.leading_shape) :]

    def flatten(self, y: Tensor) -> Tensor:
        """Return ``y`` as (N, D) in ``compute_dtype``."""
        shape = torch.Size((self.num_rows * self.row_length, prod(self.equation_shape)))
        return self.reshaped(y, shape).to(self.compute_dtype)

    def unflatten(self, y: Tensor) -> Tensor:
        """Return ``y`` (N, D) in the shape and dtype of ``y0``."""
        return self.reshaped(y if y.dtype == self.dtype else y.to(self.dtype), self.shape)

    @staticmethod
    def reshaped(y: Tensor, shape: torch.Size) -> Tensor:
        """Return ``y.reshape(shape)``. Comparing the shapes first takes a tenth of the time of an operator."""
        if y.ndim == len(shape) and y.shape == shape:
            return y
        if torch.compiler.is_exporting():  # which cannot prove that the strides of a view hold for every length
            return y.reshape(shape).clone(memory_format=torch.contiguous_format)
        return y.reshape(shape)

    def rounded(self, y: Tensor) -> Tensor:
        """Return the values of ``y`` (N, D) that ``update`` receives; ``y`` itself where no rounding is needed."""
        if self.packing is not None and self.packing.is_mixed:
            return self.flatten(self.packing.pack(self.packing.unpack(self.unflatten(y))))
        return y if y.dtype == self.dtype else y.to(self.dtype).to(y.dtype)

    def lookup(self, table: Array, x: Array) -> Array:
        """Return ``table[x, m]``, (N,), with the minimum ``m`` of ``x`` (N,) over all that an equation may depend on.

        These are the equations up to its own time if the layout is causal, otherwise its row.
        """
        if self.row_length == 1:
            return lookup(table, x, x)
        rows = x.reshape(self.num_rows, self.row_length)
        return lookup(table, rows, self._least(rows)).reshape(-1)

    def all_predecessors(self, mask: Array) -> Array:
        """Return where ``mask`` is True for the equation and for all that it may depend on, (N,) bool."""
        rows = (0 + mask).reshape(self.num_rows, self.row_length)
        return namespace(rows).minimum(rows, self._least(rows)).reshape(-1) > 0

    def _least(self, rows: Array) -> Array:
        xp = namespace(rows)
        if 0 in rows.shape:  # there is no minimum
            return rows
        if not self.causal:
            return xp.amin(rows, 1)[:, None]
        return np.minimum.accumulate(rows, 1) if xp is np else rows.cummin(1).values

    def any_in_row(self, mask: Array) -> Array:
        """Return where ``mask`` is True for some equation of the same row, (N,) bool."""
        return self._repeat_over_row(mask.reshape(self.num_rows, self.row_length).any(1))

    def _repeat_over_row(self, row: Array) -> Array:
        return namespace(row).broadcast_to(row[:, None], (self.num_rows, self.row_length)).reshape(-1)
