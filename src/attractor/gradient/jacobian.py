"""Estimates of the Jacobian ``J = ∂update/∂y`` without forming it, and a penalty on its size."""

import torch
from torch import Tensor

from attractor.solve import Update
from attractor.solve.array_ops import row_norm


def spectral_radius(
    update: Update, y: Tensor, *, iterations: int = 32, generator: torch.Generator | None = None
) -> Tensor:
    """Estimate ``ρ(J)`` at ``y``, one number per row of the batch, shape (B,).

    Power iteration on ``Jᵀ``. The estimate is the geometric mean of the growth over the second half of the iterations,
    which also converges if the dominant eigenvalues are a complex pair. Below 1, plain iteration converges near ``y``.
    """
    f, y = _linearise(update, y)
    v = _unit(torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device))
    growth = []
    for _ in range(iterations):
        v = _vjp(f, y, v)
        growth.append(_norm(v))
        v = _unit(v)
    second_half = torch.stack(growth[iterations // 2 :])
    return second_half.clamp_min(torch.finfo(second_half.dtype).tiny).log().mean(dim=0).exp()


def lipschitz_estimate(
    update: Update, y: Tensor, *, iterations: int = 16, generator: torch.Generator | None = None
) -> Tensor:
    """Estimate ``‖J‖₂`` at ``y``, one number per row of the batch, shape (B,): the factor by which distances grow.

    Power iteration on ``JᵀJ``; a lower bound of the Lipschitz constant of ``update``. Unlike the spectral radius it
    bounds a single step: below 1, every step from a point near ``y`` brings it nearer in the Euclidean norm.
    """
    f, y = _linearise(update, y)
    v = _unit(torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device))
    # J·v by differentiating w ↦ Jᵀw, which is linear: reverse mode twice works for every operation with a gradient.
    w = torch.zeros_like(f, requires_grad=True)
    (transposed,) = torch.autograd.grad(f, y, w, create_graph=True)
    factor = _norm(v)
    for _ in range(iterations):
        (jv,) = torch.autograd.grad(transposed, w, v, retain_graph=True)
        factor = _norm(jv)
        v = _unit(_vjp(f, y, jv))
    return factor


def jacobian_penalty(
    update: Update, y: Tensor, *, samples: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Estimate ``‖J‖²_F / n`` at ``y``, a differentiable scalar to add to a loss (Bai et al. 2021, eq. 5).

    Hutchinson's estimator: the mean of ``‖vᵀJ‖²`` over standard normal ``v``, divided by the number of unknowns ``n``.
    """
    f, y = _linearise(update, y)
    total = y.new_zeros(())
    for _ in range(samples):
        v = torch.randn(y.shape, generator=generator, dtype=y.dtype, device=y.device)
        (vj,) = torch.autograd.grad(f, y, v, create_graph=True)
        total = total + vj.square().sum()
    return total / (samples * y.numel())


def _linearise(update: Update, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):  # compiled code has no second derivative
        y = y.detach().requires_grad_()
        return update(y) + 0 * y, y  # connected to y even if update ignores it


def _vjp(f: Tensor, y: Tensor, v: Tensor) -> Tensor:
    (out,) = torch.autograd.grad(f, y, v, retain_graph=True)
    return out


def _norm(v: Tensor) -> Tensor:
    return row_norm(v.flatten(1))


def _unit(v: Tensor) -> Tensor:
    norm = _norm(v).clamp_min(torch.finfo(v.dtype).tiny)
    return v / norm.view(-1, *[1] * (v.ndim - 1))
