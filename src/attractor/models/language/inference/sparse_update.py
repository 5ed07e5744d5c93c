"""The attractor's update for the tokens that still move, against the stored keys and values of those that do not.

Linear layers see the due tokens of all rows as one sequence. Their queries then go to their own rows for attention. Numbers of
tokens are rounded up to multiples of ``TILE``: matrix kernels treat the last few rows of a product in their own way, and
so a token's rounding does not depend on how many others, later ones among them, are looked at with it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache

from attractor.models.language.inference.context import AttentionContext, Reader
from attractor.nn.transformer import Attend, Rotary, attention
from attractor.solve import PartialUpdate

TILE = 16
Map = Callable[[Tensor, Tensor, Reader], Tensor]  # y and proposal, each (B, T, D), and how layers read


class TokenUpdate(PartialUpdate):
    """``y → apply(y, proposal, reader)`` with the keys and values of every token as of its last evaluation.

    They are written into the cache of ``context``, or into one that is dropped afterwards.
    """

    def __init__(self, apply: Map, proposal: Tensor, context: AttentionContext) -> None:
        self.apply, self.proposal, self.context = apply, proposal, context
        self.cache: Cache = DynamicCache() if context.cache is None else context.cache
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}  # by slot, each (B, heads, S, head_dim)
        self.y = proposal  # (B, T, D), as last evaluated
        self.everyone = _All(self)

    def __call__(self, y: Tensor) -> Tensor:
        self.y = y
        return self.apply(y, self.proposal, self.everyone)

    def at(self, y: Tensor, index: Tensor) -> Tensor:
        batch, length, width = self.y.shape
        self.y = self.y.view(-1, width).index_copy(0, index, y).view_as(self.y)
        if TILE * -(-len(index) // TILE) >= batch * length:
            return self(self.y).view(-1, width)[index]
        reader = _Some(self, index)
        proposal = self.proposal.view(-1, width)[reader.index]
        return self.apply(reader.pad(y[None]), proposal[None], reader)[0, : len(index)]

    def finish(self, value: Tensor) -> None:
        """Leave the keys and values of ``value`` (B, T, D) in the cache, for tokens that ended elsewhere than last evaluated."""
        if self.context.cache is not None and not torch.equal(value, self.y):
            index = (value != self.y).any(dim=-1).view(-1).nonzero()[:, 0]
            self.at(value.reshape(-1, value.shape[-1])[index], index)


class _All:
    """All tokens, as they stand in their rows."""

    def __init__(self, update: TokenUpdate) -> None:
        context = update.context
        self.update, self.rotary, self.is_real = update, context.rotary, context.is_real
        length, past = update.y.shape[1], context.past
        # Where a cache counts its tokens on the device, no slice can be made of them without waiting.
        self.places = (
            slice(past, past + length) if isinstance(past, int) else past + torch.arange(length, device=past.device)
        )

    def attend(self, slot: int) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            stored = self.update.stored
            if slot not in stored:
                stored[slot] = self.update.cache.update(k, v, slot)
            else:
                for store, new in zip(stored[slot], (k, v), strict=True):
                    store[:, :, self.places] = new
            return attention(q, *stored[slot], self.update.context.mask)

        return attend


class _Some:
    """The tokens ``index`` (M,) of all rows as one sequence, padded to whole tiles with the first of them."""

    def __init__(self, update: TokenUpdate, index: Tensor) -> None:
        self.update, self.num = update, len(index)
        batch, length, _ = update.y.shape
        self.index = torch.cat([index, index[:1].expand(-len(index) % TILE)])
        cos, sin = (part.expand(batch, -1, -1, -1)[:, 0].flatten(0, 1)[self.index] for part in update.context.rotary)
        self.rotary: Rotary = (cos[None, None], sin[None, None])
        is_real = update.context.is_real
        self.is_real = None if is_real is None else is_real.reshape(1, -1, 1)[:, self.index]

        self.rows, self.columns = index // length, index % length
        self.places = self.columns + update.context.past
        self.busy, self.of, counts = torch.unique_consecutive(self.rows, return_inverse=True, return_counts=True)
        self.nth = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[self.of]
        self.most = TILE * -(-int(counts.max()) // TILE)
        self.mask: Tensor | None = None

    def pad(self, x: Tensor) -> Tensor:
        """Pad (..., M, D) to whole tiles."""
        return F.pad(x, (0, 0, 0, len(self.index) - self.num))

    def attend(self, slot: int) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.update.stored[slot]
            for store, new in ((keys, k), (values, v)):
                store[self.rows, :, self.places] = new[0, :, : self.num].transpose(0, 1).to(store.dtype)
            own = q.new_zeros(len(self.busy), q.shape[1], self.most, q.shape[3])
            own[self.of, :, self.nth] = q[0, :, : self.num].transpose(0, 1)
            if len(self.busy) < len(keys):
                keys, values = keys[self.busy], values[self.busy]
            out = attention(own, keys, values, self._visible(keys.shape[2]))
            return self.pad(out[self.of, :, self.nth].transpose(0, 1)[None])

        return attend

    def _visible(self, size: int) -> Tensor:
        """Who sees whom, (busy rows, 1, queries, S)."""
        if self.mask is None:
            columns = self.columns.new_zeros(len(self.busy), self.most)
            columns[self.of, self.nth] = self.columns
            if self.update.context.mask is None:
                place = torch.arange(size, device=columns.device)
                self.mask = (place <= (columns + self.update.context.past)[..., None])[:, None]
            else:
                mask = self.update.context.mask.expand(self.update.y.shape[0], -1, -1, -1)
                self.mask = mask[self.busy[:, None], 0, columns][:, None]
        return self.mask
