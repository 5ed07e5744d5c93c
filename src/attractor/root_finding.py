"""Root finding, ``residual(y) = 0``, on the loop of :func:`attractor.fixed_point`.

Newton's step is an update whose fixed points are the roots and whose Jacobian is zero there: its residual estimates the
error, and one tracked step has the exact gradient.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from attractor.config import require_positive, require_type, require_whole
from attractor.errors import ConfigError, NotConvergedError
from attractor.gradient import Gradient, Implicit, OneStep, in_forward_mode
from attractor.gradient.gradients import attach_transformed
from attractor.layer import fixed_point, in_one_graph, restored
from attractor.solve import Picard, Solution, Solver, StopRule, Tolerance, Update
from attractor.solve.array_ops import count, is_readable
from attractor.solve.packing import Packing
from attractor.solve.update import Adapted, Repeated


class NewtonMethod(ABC):
    """Newton's method, ``y ← y − J⁻¹ residual(y)`` with the Jacobian ``J`` of each row."""

    @abstractmethod
    def newton_step(self, residual: Update, y: Tensor) -> Tensor:
        """Return ``J⁻¹ residual(y)``, (N, D), for a ``residual`` of N independent rows. Tracked through the residual."""

    @abstractmethod
    def attach(self, residual: Update, value: Tensor) -> Tensor:
        """Return the root ``value`` (N, D) with its exact gradient."""


@dataclass(frozen=True)
class Newton(NewtonMethod):
    """Newton's method with the dense Jacobian of each row: D reverse passes and a factorisation, for small D."""

    def newton_step(self, residual: Update, y: Tensor) -> Tensor:
        with torch.no_grad():
            r, pullback, *_ = torch.func.vjp(residual, y)
            num = y.shape[1]
            if num == 1:
                jacobian = pullback(torch.ones_like(r))[0][:, :, None]
            else:
                basis = torch.eye(num, dtype=y.dtype, device=y.device)[:, None].expand(num, *y.shape)
                rows = torch.func.vmap(lambda v: pullback(v)[0], randomness="same")(basis)
                jacobian = rows.movedim(0, 1)  # (N, D of the residual, D of y)
        if torch.is_grad_enabled():
            r = residual(y)
        if num == 1:
            step = r / jacobian[:, :, 0]
        else:
            wide = torch.promote_types(r.dtype, torch.float32)
            step = torch.linalg.solve_ex(jacobian.to(wide), r.to(wide))[0].to(r.dtype)
        # At a root the Jacobian may be singular; where it is not, the step of zero carries the gradient.
        return torch.where((r == 0).all(1, keepdim=True) & ~step.isfinite(), 0, step)

    def attach(self, residual: Update, value: Tensor) -> Tensor:
        return OneStep().attach(lambda y: y - self.newton_step(residual, y), value)


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(NewtonMethod):
    """Newton's method without a matrix: each step is solved by GMRES with products of the Jacobian and a vector.

    Parameters
    ----------
    rtol
        The residual of the linear system, relative to its right-hand side, at which GMRES stops.
    max_products
        The most products for one step, and the number of vectors (N, D) that are kept.
    """

    rtol: float = 1e-3
    max_products: int = 32

    def __post_init__(self) -> None:
        require_positive(self, "rtol")
        require_whole(self, 1, "max_products")

    def newton_step(self, residual: Update, y: Tensor) -> Tensor:
        def product(s: Tensor) -> Tensor:
            return torch.func.jvp(residual, (y,), (s,))[1]

        step, left = gmres(product, residual(y), rtol=self.rtol, max_products=self.max_products)
        # A least-squares step near a point without a root is small, and must not be taken for a small error.
        return step.where((left < 0.5)[:, None], torch.nan)

    def attach(self, residual: Update, value: Tensor) -> Tensor:
        def adjoint(vjp: Update, v: Tensor) -> Tensor:  # of the update y − residual(y)
            rtol = 64 * torch.finfo(v.dtype).eps
            u, left = gmres(lambda u: u - vjp(u), v, rtol=rtol, max_products=4 * self.max_products)
            if is_readable(left) and bool((left > max(1e-5, rtol)).any()):
                warnings.warn(
                    f"NewtonKrylov gradient: the linear system is solved to {float(left.max()):.1e} only; raise "
                    "max_products.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return u

        return attach_transformed(lambda y: y - residual(y), value, adjoint)


_NEWTON, _TOLERANCE = Newton(), Tolerance(rtol=1e-6)


def root(
    residual: Update,
    y0: Any,
    *,
    solver: NewtonMethod | Solver = _NEWTON,
    stop: StopRule = _TOLERANCE,
    gradient: Gradient | None = None,
    throw: bool = False,
    trace: bool | Collection[int] = False,
) -> Solution:
    """Solve ``residual(y) = 0`` from ``y0``, and make the solution differentiable.

    Parameters
    ----------
    residual
        ``residual(y)``, of the structure, shapes and dtypes of ``y``. The rows of the batch are independent systems.
    y0
        As in :func:`attractor.fixed_point`. One row of (B, ...) is one system; (N,) is N equations of one unknown each.
    solver
        :class:`Newton`, :class:`NewtonKrylov`, or a solver of fixed points, which is then applied to
        ``y − residual(y)``. ``Broyden()`` needs no derivative.
    gradient
        Exact to a tolerance by default. Another one is applied to the update ``y − residual(y)``.
    stop, throw, trace
        As in :func:`attractor.fixed_point`.

    Returns
    -------
    Solution
        With Newton's method, ``residual`` is the size of the next step relative to ``y``: an estimate of the error.

    Raises
    ------
    ConfigError, DataError, NotConvergedError
        As :func:`attractor.fixed_point`.
    """
    if torch.compiler.is_compiling():
        in_one_graph(False)
        return torch.compiler.disable(root)(
            residual, y0, solver=solver, stop=stop, gradient=gradient, throw=throw, trace=trace
        )
    if not isinstance(solver, Solver):
        require_type("root", "solver", solver, NewtonMethod, "Newton(), NewtonKrylov() or Broyden()")
    packing = None
    if not (isinstance(y0, Tensor) and y0.is_floating_point()):
        packing = Packing.of(y0, None, False)
        y0 = packing.pack(y0)
    shape, repeated = y0.shape, Repeated(Adapted(residual, packing))

    def rows(y: Tensor) -> Tensor:
        return y.reshape(shape[0] if shape else 1, prod(shape[1:]))

    def flat(y: Tensor) -> Tensor:
        out = repeated(y.reshape(shape))
        if not isinstance(out, Tensor) or (out.shape, out.dtype) != (shape, y.dtype):
            got = f"{tuple(out.shape)} {out.dtype}" if isinstance(out, Tensor) else type(out).__name__
            raise ConfigError(
                f"root: residual returned {got} for y of {tuple(shape)} {y.dtype}; it must return the same."
            )
        return rows(out)

    options: dict[str, Any] = {"stop": stop, "equation_dims": None if y0.ndim < 2 else y0.ndim - 1, "trace": trace}
    if isinstance(solver, Solver):
        gradient = gradient or Implicit()
        solution = fixed_point(lambda y: y - repeated(y), y0, solver=solver, gradient=gradient, **options)
        return _checked(restored(solution, packing), throw)
    with torch.no_grad():
        solution = fixed_point(
            lambda y: y - solver.newton_step(flat, rows(y)).reshape(shape), y0, solver=Picard(), **options
        )
    if torch.is_grad_enabled() and not in_forward_mode():  # there the solution has its tangent already
        if gradient is None:
            value = solver.attach(flat, rows(solution.value))
        else:
            value = gradient.attach(lambda y: y - flat(y), rows(solution.value))
        solution = replace(solution, value=value.reshape(shape))
    return _checked(restored(solution, packing), throw)


def _checked(solution: Solution, throw: bool) -> Solution:
    if throw and not solution.outcome.converged:
        raise NotConvergedError(f"root: {solution.outcome}", solution)
    return solution


def gmres(product: Callable[[Tensor], Tensor], b: Tensor, *, rtol: float, max_products: int) -> tuple[Tensor, Tensor]:
    """Solve ``product(x) = b`` for every row of ``b`` (N, D) by GMRES (Saad & Schultz 1986), without restarts.

    ``product`` is linear and multiplies every row by its own matrix (D, D). A row keeps its first ``x`` with
    ``‖product(x) − b‖`` below ``rtol · ‖b‖``. Stops when all have one, or after ``max_products`` products. Returns ``x``
    and these relative residuals (N,).
    """
    tiny = torch.finfo(b.dtype).tiny
    size = torch.linalg.vector_norm(b, dim=1, keepdim=True)
    basis, columns = [b / size.clamp_min(tiny)], list[Tensor]()
    weights, left = b.new_zeros(len(b), 0), (size[:, 0] > 0).to(b.dtype)
    for k in range(min(max_products, b.shape[1])):
        w = product(basis[-1])
        column = [torch.zeros_like(left)] * (max_products + 1)
        for _ in range(2):  # once more against rounding
            for j, q in enumerate(basis):
                part = (q * w).sum(1, keepdim=True)
                w = w - part * q
                column[j] = column[j] + part[:, 0]
        length = torch.linalg.vector_norm(w, dim=1, keepdim=True)
        column[k + 1] = length[:, 0]
        basis.append(w / length.clamp_min(tiny))
        columns.append(torch.stack(column, 1))
        hessenberg = torch.stack(columns, dim=2)[:, : k + 2]  # (N, k + 2, k + 1)
        # Least squares with the first unit vector on the right. No matrix products, which autocast would round.
        fitted = torch.linalg.pinv(hessenberg)[:, :, 0]
        misfit = (hessenberg * fitted[:, None]).sum(2) - torch.eye(1, k + 2, dtype=b.dtype, device=b.device)
        done = (left <= rtol)[:, None]
        weights = torch.where(done, torch.nn.functional.pad(weights, (0, 1)), fitted)
        left = torch.where(done[:, 0], left, torch.linalg.vector_norm(misfit, dim=1))
        num_done, total = count(left <= rtol)
        if num_done == total:
            break
    x = sum((w[:, None] * q for w, q in zip(weights.unbind(1), basis, strict=False)), torch.zeros_like(b))
    return size * x, left
