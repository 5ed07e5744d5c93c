"""Fixed points under the transforms of ``torch.func``, and in forward mode."""

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from attractor.errors import ConfigError
from attractor.gradient.gradients import SECOND_DERIVATIVES, Gradient
from attractor.solve import Update
from attractor.solve.array_ops import transforms


def refuse_transforms(gradient: Gradient) -> None:
    """Refuse the function transforms under which a solve cannot be right."""
    names = transforms()
    if "Functionalize" in names:
        raise ConfigError("fixed_point inside torch.func.functionalize cannot work: it decides on the host what to do.")
    is_transformed = type(gradient).tangent is not Gradient.tangent
    if len([name for name in names if name != "Vmap"]) > 1 and is_transformed:
        raise ConfigError(SECOND_DERIVATIVES)


def in_forward_mode() -> bool:
    """Whether tangents are computed, by ``torch.func.jvp`` or by ``torch.autograd.forward_ad``."""
    return "Jvp" in transforms() or forward_ad._current_level >= 0


def without_tangent(update: Update) -> Update:
    """Return ``update`` without the tangents of what it closes over."""
    return lambda y: forward_ad.unpack_dual(update(y)).primal


def attach_tangent(gradient: Gradient, update: Update, value: Tensor) -> Tensor:
    """Return ``value`` (B, ...), a solution of ``update`` without a tangent, as a dual tensor."""

    def push(t: Tensor) -> Tensor:
        tangent = forward_ad.unpack_dual(update(forward_ad.make_dual(value, t))).tangent
        return tangent if tangent is not None else value.new_zeros(value.shape)

    tangent = gradient.tangent(push, value.new_zeros(value.shape))
    if tangent is None:
        return gradient.attach(update, value)
    if torch.is_grad_enabled() and not transforms():  # in reverse mode, too
        value = gradient.attach(without_tangent(update), value)
    return forward_ad.make_dual(value, tangent)
