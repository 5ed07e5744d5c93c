"""Fixed points under the transforms of ``torch.func``, and in forward mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from attractor.errors import ConfigError
from attractor.gradient.gradients import SECOND_DERIVATIVES, Gradient
from attractor.solve import Solver, Update
from attractor.solve.array_ops import transforms


def refuse_transforms(gradient: Gradient) -> None:
    """Refuse the function transforms under which a solve cannot be right."""
    names = transforms()
    if "Functionalize" in names:
        raise ConfigError("fixed_point inside torch.func.functionalize cannot work: it decides on the host what to do.")
    is_transformed = type(gradient).tangent is not Gradient.tangent
    if len([name for name in names if name != "Vmap"]) > 1 and is_transformed:
        raise ConfigError(SECOND_DERIVATIVES)


@contextmanager
def explain_vmap(solver: Solver) -> Iterator[None]:
    """Say in one sentence what ``vmap`` cannot map."""
    try:
        yield
    except RuntimeError as error:
        if "Vmap" not in transforms():
            raise
        raise ConfigError(
            f"fixed_point inside torch.func.vmap: {type(solver).__name__} or update has an operation that cannot be mapped; "
            f"give y0 a batch dimension instead ({error})"
        ) from error


def in_forward_mode() -> bool:
    """Whether tangents are computed, by ``torch.func.jvp`` or by ``torch.autograd.forward_ad``."""
    return "Jvp" in transforms() or forward_ad._current_level >= 0


def without_tangent(update: Update) -> Update:
    """Return ``update`` without the tangents of what it closes over."""
    return lambda y: forward_ad.unpack_dual(update(y)).primal


def attach_tangent(gradient: Gradient, update: Update, value: Tensor) -> Tensor:
    """Return ``value`` (B, ...), a solution of ``update`` without a tangent, as a dual tensor."""

    f = value

    def push(t: Tensor) -> Tensor:
        nonlocal f
        primal, tangent = forward_ad.unpack_dual(update(forward_ad.make_dual(value, t)))
        f = primal if torch.is_grad_enabled() else f
        return tangent if tangent is not None else value.new_zeros(value.shape)

    tangent = gradient.tangent(push, value.new_zeros(value.shape))
    if tangent is None:
        return gradient.attach(update, value)
    if torch.is_grad_enabled() and not transforms():  # in reverse mode, too
        value = gradient.attach(without_tangent(update), value)
    elif torch.is_grad_enabled():
        value, tangent = _refuse_backward(value, f), _refuse_backward(tangent, f)
    return forward_ad.make_dual(value, tangent)


def _refuse_backward(x: Tensor, f: Tensor) -> Tensor:
    """Return ``x``. If autograd outside the transforms tracks ``f``, its backward pass raises an error."""
    inner = out = torch.where(torch.zeros_like(x, dtype=torch.bool), f, x)
    while torch._C._functorch.is_functorch_wrapped_tensor(inner):
        inner = torch._C._functorch.get_unwrapped(inner)
    if inner.requires_grad:
        inner.register_hook(_raise)
    return out


def _raise(cotangent: Tensor) -> None:
    raise ConfigError(
        "a fixed point inside torch.func.jvp has no gradient of torch.autograd with OneStep(), Neumann(k) or Implicit(); use "
        "Phantom(...) or Unrolled(), or dual tensors (torch.autograd.forward_ad)."
    )
