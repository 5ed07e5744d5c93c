"""The next-token loss, and the divergence from a teacher.

Logits exist for a few tokens at a time, because they need more memory than all else.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attractor.errors import DataError
from attractor.nn.compiled import CompiledBlock

CHUNK = 2048  # tokens whose logits exist at the same time
HAS_LOGITS = nn.Identity()  # the head of a model whose logits exist already


class TokenLoss(CompiledBlock):
    """Summed cross-entropy, in nats, of ``labels`` (N,) given ``x`` (N, D) and the output head."""

    def forward(self, x: Tensor, head: nn.Module, labels: Tensor) -> Tensor:
        return F.cross_entropy(_at_least_float32(head(x)), labels, reduction="sum")


class TokenDivergence(CompiledBlock):
    """Summed ``KL(teacher ‖ model)``, in nats, of next tokens given ``x`` and ``teacher_x`` (N, D) and both output heads.

    ``weight`` (N,) multiplies the terms.
    """

    def forward(self, x: Tensor, head: nn.Module, teacher_x: Tensor, teacher_head: nn.Module, weight: Tensor) -> Tensor:
        log_q = F.log_softmax(_at_least_float32(head(x)), dim=-1)
        with torch.no_grad():
            log_p = F.log_softmax(teacher_head(teacher_x).to(log_q.dtype), dim=-1)
        return weight.to(log_q.dtype) @ F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def next_token_loss(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor | None,
    token_loss: TokenLoss,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Return the mean cross-entropy, in nats, of ``labels[:, t + 1]`` given ``hidden[:, t]``; −100 is ignored.

    The backward pass computes the logits of each chunk again.

    Parameters
    ----------
    hidden
        (B, T, D), after the last norm; with ``head=HAS_LOGITS`` the logits (B, T, V).
    head
        Called for the logits, so that adapters, biases and hooks of the output head count.
    labels, shift_labels
        (B, T); ``shift_labels[:, t]`` replaces ``labels[:, t + 1]``.
    num_items_in_batch
        Divides the sum in place of the number of labels, so that small batches add up to a large one.

    Raises
    ------
    DataError
        For labels of another shape.
    """
    given = labels if shift_labels is None else shift_labels
    assert given is not None
    if given.shape != hidden.shape[:2]:
        raise DataError(f"labels of shape {tuple(given.shape)} do not fit {tuple(hidden.shape[:2])} tokens.")
    given = given.to(hidden.device)
    x, y = (hidden[:, :-1], given[:, 1:]) if shift_labels is None else (hidden, given)
    x, y = x.flatten(0, 1), y.flatten()
    total = _sum_chunks(lambda a, b: token_loss(a, head, b), x, y, chunk=chunk)
    count = (y != -100).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
    return total / (count.to(hidden.device) if isinstance(count, Tensor) else count)


def teacher_divergence(
    hidden: Tensor,
    head: nn.Module,
    teacher_hidden: Tensor,
    teacher_head: nn.Module,
    labels: Tensor,
    divergence: TokenDivergence,
    *,
    chunk: int = CHUNK,
) -> Tensor:
    """Return the mean ``KL(teacher ‖ model)``, in nats, at the positions that :func:`next_token_loss` counts.

    ``hidden`` and ``teacher_hidden`` (B, T, D) are those after the last norm, ``labels`` (B, T).
    """
    weight = (labels[:, 1:] != -100).flatten().float()
    x, teacher_x = (each[:, :-1].flatten(0, 1) for each in (hidden, teacher_hidden))
    total = _sum_chunks(
        lambda a, b, w: divergence(a, head, b, teacher_head, w), x, teacher_x, weight.to(x.device), chunk=chunk
    )
    return total / weight.sum().clamp_min(1).to(total.device)


def _sum_chunks(function: Callable[..., Tensor], *tensors: Tensor, chunk: int) -> Tensor:
    """Return the sum of ``function`` over chunks of the tensors, each of which is computed again in the backward pass."""
    chunks = list(zip(*(tensor.split(chunk) for tensor in tensors), strict=True))
    recompute = len(chunks) > 1 and torch.is_grad_enabled()
    sums = [checkpoint(function, *each, use_reentrant=False) if recompute else function(*each) for each in chunks]
    return torch.stack(sums).sum()
