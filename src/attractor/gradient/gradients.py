"""How to differentiate a solution: frozen values, an argument of ``fixed_point`` like the solver and the stop rule.

At a fixed point ``y* = update(y*)``, a loss with cotangent ``v = ∂L/∂y*`` has the parameter gradient ``uᵀ ∂update/∂θ``,
where ``(I − Jᵀ) u = v`` and ``J = ∂update/∂y`` (implicit function theorem). Each gradient here calls ``update`` at the
solution with autograd on and turns ``v`` into its ``u``; the ordinary autograd graph of that call propagates ``u`` to
everything that ``update`` closes over. Parameters are never listed, so modules, hooks, DDP and compiled updates work as
usual.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch._functorch.config  # importing torch does not import it
from torch import Tensor

from attractor.config import require_positive, require_type, require_whole
from attractor.errors import ConfigError
from attractor.solve import Anderson, Solver, StopRule, Tolerance, Update, solve
from attractor.solve.array_ops import is_readable, row_norm, row_scale, transforms


class Gradient(ABC):
    """The contract: return ``value``, connected by autograd to everything that ``update`` depends on.

    ``tracks_solve`` says whether autograd records the solver's own steps, and ``is_traceable`` whether ``torch.compile``
    can compile :meth:`attach`.
    """

    tracks_solve: ClassVar[bool] = False
    is_traceable: ClassVar[bool] = False

    @property
    def num_steps(self) -> int:
        """Tracked steps by which the returned value lies beyond the solver's solution."""
        return 0

    @abstractmethod
    def attach(self, update: Update, value: Tensor) -> Tensor:
        """Attach a gradient to ``value`` (B, ...), the solution of ``update``. Returns a tensor of the same shape."""

    def tangent(self, push: Update, zero: Tensor) -> Tensor | None:
        """Return the tangent of the solution in forward mode, (B, ...).

        ``push(t) = b + J t``, where ``b`` is the tangent of ``update`` at a fixed state; its fixed point is the exact
        tangent. ``None``: :meth:`attach` also works in forward mode.
        """
        return None


@dataclass(frozen=True)
class OneStep(Gradient):
    """``u = v``: Jacobian-free backpropagation (Fung et al. 2022). One tracked call; right only if ``J`` is small.

    The authors' code calls ``u = v + Jᵀv`` "onestep"; here that is ``Neumann(1)``.
    """

    is_traceable: ClassVar[bool] = True

    def attach(self, update: Update, value: Tensor) -> Tensor:
        return _Attach.apply(value, update(value.detach()), None, bool(transforms()))

    def tangent(self, push: Update, zero: Tensor) -> Tensor:
        return push(zero)


@dataclass(frozen=True)
class Neumann(Gradient):
    """``u = Σ (Jᵀ)ᵏ v`` for k from 0 to ``terms``: one tracked call, ``terms`` vector-Jacobian products.

    With ``clip``, a row's term has at most ``clip`` times the norm of the term before it, as in the authors' code for
    one term. Below 1, the series then converges for every update.
    """

    terms: int = 1
    clip: float | None = None

    def __post_init__(self) -> None:
        require_whole(self, 0, "terms")
        if self.clip is not None:
            require_positive(self, "clip")

    def attach(self, update: Update, value: Tensor) -> Tensor:
        def series(vjp: Update, v: Tensor) -> Tensor:
            total = term = v
            for _ in range(self.terms):
                term = self._clipped(vjp(term), term)
                total = total + term
            return total

        return attach_transformed(update, value, series)

    def tangent(self, push: Update, zero: Tensor) -> Tensor:
        if self.clip is not None:
            raise ConfigError(
                "Neumann(clip=...): forward mode has no such terms; leave the clip out, or use Implicit()."
            )
        total = push(zero)
        for _ in range(self.terms):
            total = push(total)
        return total

    def _clipped(self, term: Tensor, last: Tensor) -> Tensor:
        if self.clip is None or not term.numel():
            return term
        norm, limit = (row_norm(x.reshape(len(x) if x.ndim else 1, -1)) for x in (term, last))
        limit = self.clip * limit
        factor = torch.where(norm > limit, limit / norm, 1)
        return term * (factor.view(-1, *[1] * (term.ndim - 1)) if term.ndim else factor[0])


@dataclass(frozen=True, kw_only=True)
class Implicit(Gradient):
    """``u = (I − Jᵀ)⁻¹ v``, solved with ``solver``; exact at a fixed point. The default of ``fixed_point``.

    Every row of the batch is one equation of the adjoint system. Warns if some of them do not converge. The default of
    ``stop`` is a tolerance of 1e-5, or what the dtype of the state can resolve.

    With ``order=2``, ``torch.autograd`` can differentiate the gradient once more (``create_graph=True``), for one more
    tracked call of ``update``.
    """

    solver: Solver = field(default_factory=Anderson)
    stop: StopRule | None = None
    order: int = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ConfigError(f"Implicit(order={self.order!r}): 1 for gradients, or 2 for second derivatives, too.")
        require_type("Implicit", "solver", self.solver, Solver, "Anderson()")
        if self.stop is not None:
            require_type("Implicit", "stop", self.stop, StopRule, "Tolerance(rtol=1e-5)")

    def attach(self, update: Update, value: Tensor) -> Tensor:
        def adjoint(vjp: Update, v: Tensor) -> Tensor:
            _refuse_legacy_vmap(v)
            # Rows that are not finite keep their cotangent, so that a loss scaler finds the overflow in the parameters.
            finite = v.isfinite()
            for dim in range(1, v.ndim):
                finite = finite.all(dim, keepdim=True)
            start = v.where(finite, 0)
            # The adjoint is linear: the size of the cotangent must not decide whether its squares underflow.
            scale: Any = 1
            if v.numel():
                scale = row_scale(start.reshape(len(v) if v.ndim else 1, -1)).view(-1, *[1] * (v.ndim - 1))
                scale = scale if v.ndim else scale[0]
            start = start / scale
            dims = max(v.ndim - 1, 0)
            stop = self._stop(v)
            solution = solve(lambda u: start + vjp(u), start, solver=self.solver, stop=stop, equation_dims=dims)
            if is_readable(v) and not finite.all():
                warnings.warn(
                    f"Implicit gradient: the cotangent of {int((~finite).sum())} of {finite.numel()} row(s) is not finite; "
                    "they are differentiated as by OneStep().",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if not stop.is_fixed_depth and is_readable(v) and not solution.outcome.converged:
                warnings.warn(f"Implicit gradient: {solution.outcome}", RuntimeWarning, stacklevel=2)
            return torch.where(finite, solution.value * scale, v)

        attached = attach_transformed(update, value, adjoint)
        if self.order == 1 or transforms():
            return attached
        point = _Link.apply(attached)
        f = update(point)

        def differentiable(v: Tensor) -> Tensor:
            """Solve for ``u``, and attach how it depends on ``v`` and, through ``J``, on the solution."""
            with torch.no_grad():
                u = adjoint(lambda u: _vjp(f, point, u), v)
            return replace(self, order=1).attach(lambda u: v + _vjp(f, point, u, create_graph=True), u)

        return _AttachTwice.apply(attached, f, differentiable)

    def tangent(self, push: Update, zero: Tensor) -> Tensor:
        stop, start = self._stop(zero), push(zero)
        _refuse_legacy_vmap(start)
        with torch.no_grad():
            solution = solve(push, start, solver=self.solver, stop=stop, equation_dims=max(zero.ndim - 1, 0))
        if is_readable(zero) and not stop.is_fixed_depth and not solution.outcome.converged:
            warnings.warn(f"Implicit tangent: {solution.outcome}", RuntimeWarning, stacklevel=2)
        return solution.value

    def _stop(self, x: Tensor) -> StopRule:
        return self.stop or Tolerance(rtol=max(1e-5, 4 * torch.finfo(x.dtype).eps))


@dataclass(frozen=True, kw_only=True)
class Phantom(Gradient):
    """Backpropagate through ``steps`` damped plain steps from the solution (Geng et al. 2021).

    The returned value is the last of these steps, so that loss and gradient belong to the same point. With autograd on
    it is ``steps`` evaluations beyond the solver's result, to which ``Solution.residual`` belongs.
    """

    steps: int = 4
    damping: float = 1.0
    is_traceable: ClassVar[bool] = True

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
    """Backpropagate through the complete solve. Memory grows with the evaluations. The reference for all others."""

    tracks_solve: ClassVar[bool] = True
    is_traceable: ClassVar[bool] = True

    def attach(self, update: Update, value: Tensor) -> Tensor:
        return value


def _refuse_legacy_vmap(x: Tensor) -> None:
    if torch._C._functorch.is_legacy_batchedtensor(x):
        raise ConfigError(
            "Implicit(): torch.autograd.functional.jacobian(vectorize=True) and is_grads_batched=True cannot map the linear "
            "solve; use torch.func.jacrev or jacfwd, or leave them out."
        )


SECOND_DERIVATIVES = (
    "second derivatives of a fixed point need gradient=Unrolled() or Phantom(...); with torch.autograd, also "
    "Implicit(order=2)."
)


def attach_transformed(update: Update, value: Tensor, transform: Callable[[Update, Tensor], Tensor]) -> Tensor:
    if transforms():  # requires_grad_ does not exist there
        f, pullback, *_ = torch.func.vjp(update, value.detach())
        return _Attach.apply(value, f, lambda v: transform(lambda u: pullback(u)[0], v), True)
    y = value.detach().requires_grad_()
    f = update(y)

    def vjp(u: Tensor) -> Tensor:
        # Compiled code refuses to keep its graph while this setting is on, even if it has no donated buffers.
        with torch._functorch.config.patch(donated_buffer=False):
            return _vjp(f, y, u)

    context = copy_context()  # the backward pass may run in another thread, and is synchronized like the forward pass
    return _Attach.apply(value, f, lambda v: context.run(transform, vjp, v), False)


def _vjp(f: Tensor, y: Tensor, u: Tensor, create_graph: bool = False) -> Tensor:
    options: dict[str, bool] = {"allow_unused": True, "materialize_grads": True, "create_graph": create_graph}
    return torch.autograd.grad(f, y, u, retain_graph=True, **options)[0]


class _Attach(torch.autograd.Function):
    """Return ``value``; in the backward pass, ``f`` receives the transformed cotangent of ``value``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, f: Tensor, transform: Update | None, in_transform: bool) -> Tensor:
        return value.detach().clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Update | None, bool], output: Tensor) -> None:
        ctx.transform, ctx.in_transform = inputs[2:]
        ctx.set_materialize_grads(False)  # a link passes nothing on

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> tuple[None, Tensor | None, None, None]:
        if v is None:
            return None, None, None, None
        if torch.is_grad_enabled():
            # create_graph=True would silently ignore how the cotangent depends on the solution. Function transforms
            # always set it, so that there only a second derivative is refused.
            if not ctx.in_transform:
                raise ConfigError(SECOND_DERIVATIVES)
            v = _RefuseDerivative.apply(v)
        return None, (v if ctx.transform is None else ctx.transform(v)), None, None


class _RefuseDerivative(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return v.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        raise ConfigError(SECOND_DERIVATIVES)


class _AttachTwice(torch.autograd.Function):
    """Return ``value``; with ``create_graph=True``, ``f`` receives a cotangent that can be differentiated.

    ``f`` is ``update`` at a :class:`_Link` to ``value``. Otherwise the gradient of ``value`` is enough.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, f: Tensor, transform: Update) -> Tensor:
        ctx.transform = transform
        ctx.set_materialize_grads(False)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if v is None:
            return None, None, None
        return (None, ctx.transform(v), None) if torch.is_grad_enabled() else (v, None, None)


class _Link(torch.autograd.Function):
    """Pass on the cotangents of the second derivative only: those of the first are in the solution of the adjoint."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, v: Tensor | None) -> Tensor | None:
        return None if torch.is_grad_enabled() else v
