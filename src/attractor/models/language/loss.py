"""The next-token loss. Logits exist for a few tokens at a time, because they need more memory than all else."""

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
        return F.cross_entropy(head(x).float(), labels, reduction="sum")


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
    chunks = list(zip(x.split(chunk), y.split(chunk), strict=True))
    recompute = len(chunks) > 1 and torch.is_grad_enabled()
    sums = [
        checkpoint(token_loss, a, head, b, use_reentrant=False) if recompute else token_loss(a, head, b)
        for a, b in chunks
    ]
    count = (y != -100).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
    return torch.stack(sums).sum() / (count.to(hidden.device) if isinstance(count, Tensor) else count)
