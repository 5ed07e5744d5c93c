"""How to differentiate a solution: frozen values handed to ``fixed_point`` beside the solver and the stop rule.

At a fixed point ``y* = update(y*)``, a loss with cotangent ``v = ∂L/∂y*`` has the parameter gradient ``uᵀ ∂update/∂θ``, where
``(I − Jᵀ) u = v`` and ``J = ∂update/∂y`` (implicit function theorem). Each gradient here makes tracked calls of ``update`` at
the solution and turns ``v`` into its ``u``; the ordinary autograd graph of that call carries ``u`` on to whatever ``update``
closed over. No parameter is ever listed, so modules, hooks, DDP and compiled updates work as they always do.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attractor.config import require_whole
from attractor.errors import ConfigError
from attractor.solve import Anderson, Solver, StopRule, Tolerance, Update, is_synchronized, solve


class Gradient(ABC):
    """The contract: return ``value``, or a tracked tensor in its place, connected to what ``update`` depends on."""

    tracks_solve: ClassVar[bool] = False  # whether autograd records the solver's own steps

    @property
    def num_steps(self) -> int:
        """Tracked steps by which the returned value lies beyond the solver's solution."""
        return 0

    @abstractmethod
    def attach(self, update: Update, value: Tensor) -> Tensor:
        """Attach a gradient to ``value`` (batch first, any further shape), the solution of ``update``."""


@dataclass(frozen=True)
class OneStep(Gradient):
    """``u = v``: Jacobian-free backpropagation (Fung et al. 2022). One tracked call; the default.

    The authors' code calls ``u = v + Jᵀv`` "onestep"; here that is ``Neumann(1)``.
    """

    def attach(self, update: Update, value: Tensor) -> Tensor:
        return _Attach.apply(value, update(value.detach()))


@dataclass(frozen=True)
class Neumann(Gradient):
    """``u = Σ (Jᵀ)ᵏ v`` for k from 0 to ``terms``: ``terms`` vector-Jacobian products, one tracked call."""

    terms: int = 1

    def __post_init__(self) -> None:
        require_whole(self, 0, "terms")

    def attach(self, update: Update, value: Tensor) -> Tensor:
        def series(vjp: Update, v: Tensor) -> Tensor:
            total = term = v
            for _ in range(self.terms):
                term = vjp(term)
                total = total + term
            return total

        return _attach_transformed(update, value, series)


@dataclass(frozen=True, kw_only=True)
class Implicit(Gradient):
    """``u = (I − Jᵀ)⁻¹ v``, solved with a solver of this package; exact at a fixed point.

    Every row of the batch is one equation of the adjoint system. Warns when some of them end above tolerance.
    """

    solver: Solver = field(default_factory=Anderson)
    stop: StopRule = field(default_factory=lambda: Tolerance(rtol=1e-5))

    def attach(self, update: Update, value: Tensor) -> Tensor:
        def adjoint(vjp: Update, v: Tensor) -> Tensor:
            finite = bool(v.isfinite().all())
            if not finite and not is_synchronized():
                return v  # an overflowed loss goes on to whoever scales or skips it
            dims = min(v.ndim, max(v.ndim - 1, 1))
            solution = solve(lambda u: v + vjp(u), v, solver=self.solver, stop=self.stop, equation_dims=dims)
            if not finite:  # solved all the same, as others wait for this rank
                return v
            if isinstance(self.stop, Tolerance) and not solution.outcome.converged:
                warnings.warn(f"Implicit gradient: {solution.outcome}", RuntimeWarning, stacklevel=2)
            return solution.value

        return _attach_transformed(update, value, adjoint)


@dataclass(frozen=True, kw_only=True)
class Phantom(Gradient):
    """Backpropagate through ``steps`` damped plain steps made from the solution (Geng et al. 2021).

    The returned value is the last of these steps, so that loss and gradient belong to the same point: with
    gradients on, it lies ``steps`` evaluations beyond the solver's answer, to which ``Solution.residual`` belongs.
    """

    steps: int = 4
    damping: float = 1.0

    def __post_init__(self) -> None:
        require_whole(self, 1, "steps")
        if not 0 < self.damping <= 1:
            raise ConfigError(f"Phantom(damping={self.damping!r}): the damping must lie in (0, 1].")

    @property
    def num_steps(self) -> int:
        return self.steps

    def attach(self, update: Update, value: Tensor) -> Tensor:
        y = value.detach()
        for _ in range(self.steps):
            f = update(y)
            y = f if self.damping == 1 else torch.lerp(y, f, self.damping)
        return y


@dataclass(frozen=True)
class Unrolled(Gradient):
    """Backpropagate through the whole solve. Memory grows with the evaluations; the reference for all others."""

    tracks_solve: ClassVar[bool] = True

    def attach(self, update: Update, value: Tensor) -> Tensor:
        return value


def _attach_transformed(update: Update, value: Tensor, transform: Callable[[Update, Tensor], Tensor]) -> Tensor:
    y = value.detach().requires_grad_()
    f = update(y)

    def vjp(u: Tensor) -> Tensor:
        # Compiled code refuses to keep its graph while this setting is on, even if it has no donated buffers.
        with torch._functorch.config.patch(donated_buffer=False):
            (out,) = torch.autograd.grad(f, y, u, retain_graph=True, allow_unused=True, materialize_grads=True)
        return out

    context = copy_context()  # ranks that solve together do so on the way back too, in whatever thread that is
    return _Attach.apply(value, f, lambda v: context.run(transform, vjp, v))


class _Attach(torch.autograd.Function):
    """``value`` on the way forward; on the way back its cotangent, transformed, goes to ``f``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, f: Tensor, transform: Update | None = None) -> Tensor:
        ctx.transform = transform
        return value.detach().clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[None, Tensor, None]:
        if (
            torch.is_grad_enabled()
        ):  # create_graph=True: the cotangent's dependence on the solution would be lost in silence
            raise ConfigError("second derivatives of a fixed point need gradient=Unrolled() or Phantom(...).")
        return None, (v if ctx.transform is None else ctx.transform(v)), None
