"""The next-token loss. Logits exist for a few tokens at a time, because they need more memory than all else."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attractor.errors import DataError
from attractor.nn.compiled import CompiledBlock

CHUNK = 2048  # tokens whose logits exist at the same time


class TokenLoss(CompiledBlock):
    """Summed cross-entropy, in nats, of ``labels`` (N,) given ``x`` (N, D) and the head's ``weight`` (V, D)."""

    def forward(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), labels, reduction="sum")


def next_token_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, token_loss: TokenLoss, *, chunk: int = CHUNK
) -> Tensor:
    """Return the mean cross-entropy, in nats, of ``labels[:, t + 1]`` given ``hidden[:, t]``; labels of −100 are
    ignored.

    The backward pass computes the logits of each chunk again.

    Parameters
    ----------
    hidden
        (B, T, D), after the last norm.
    weight
        (V, D), the output head.
    labels
        (B, T).
    token_loss
        Computes the loss of one chunk.
    chunk
        Tokens of a chunk.

    Raises
    ------
    DataError
        For labels of another shape.
    """
    if labels.shape != hidden.shape[:2]:
        raise DataError(f"labels of shape {tuple(labels.shape)} do not fit {tuple(hidden.shape[:2])} tokens.")
    x, y = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    chunks = list(zip(x.split(chunk), y.split(chunk), strict=True))
    recompute = len(chunks) > 1 and torch.is_grad_enabled()
    sums = [
        checkpoint(token_loss, a, weight, b, use_reentrant=False) if recompute else token_loss(a, weight, b)
        for a, b in chunks
    ]
    return torch.stack(sums).sum() / (y != -100).sum().clamp_min(1)
