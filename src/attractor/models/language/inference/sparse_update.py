"""The attractor's update of the tokens that still change, against the stored keys and values of the tokens that do not.

Linear layers read the active tokens of all rows as one sequence. For attention, the queries go back to their own rows.
The number of tokens is rounded up to a multiple of ``TILE``: matrix kernels treat the last few rows of a product
differently, so that without this the rounding of a token could depend on how many other tokens, also later ones, are
computed with it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from attractor.models.language.inference.cache import EquilibriumCache
from attractor.models.language.inference.context import TokenContext
from attractor.nn.rotary import Rotary
from attractor.nn.transformer import Attend, attention
from attractor.solve import PartialUpdate

TILE = 16
# State and proposal (B, T, D), and an AttentionContext, to (B, T, D).
Evaluate = Callable[[Tensor, Tensor, Any], Tensor]


class SparseUpdate(PartialUpdate):
    """``y → evaluate(y, proposal, context)`` for all tokens or for some, with the keys and values of each token's last
    evaluation.

    They are written into the cache of ``context``, or without one into a cache for this solve only.
    """

    def __init__(self, evaluate: Evaluate, proposal: Tensor, context: TokenContext) -> None:
        self.evaluate, self.proposal, self.context = evaluate, proposal, context
        self.cache = context.cache or EquilibriumCache(cache=DynamicCache())
        self.y = proposal  # (B, T, D), each token as last evaluated

    def __call__(self, y: Tensor) -> Tensor:
        self.y = y
        return self.evaluate(y, self.proposal, _AllTokens(self))

    def at(self, y: Tensor, index: Tensor) -> Tensor:
        width = self.y.shape[-1]
        self.y = self.y.view(-1, width).index_copy(0, index, y).view_as(self.y)
        context = _SomeTokens(self, index)
        proposal = self.proposal.view(-1, width)[context.index]
        return self.evaluate(context.pad(y[None]), proposal[None], context)[0, : len(index)]

    def finish(self, value: Tensor) -> None:
        """Store keys and values at the solution ``value`` (B, T, D), for tokens that were last evaluated elsewhere."""
        if self.context.cache is not None and not torch.equal(value, self.y):
            index = (value != self.y).any(dim=-1).view(-1).nonzero()[:, 0]
            self.at(value.reshape(-1, value.shape[-1])[index], index)


class _AllTokens:
    """All tokens, in their rows."""

    def __init__(self, update: SparseUpdate) -> None:
        self.rotary, self.is_real = update.context.rotary, update.context.is_real
        self._cache, self._context = update.cache, update.context

    def attend(self, layer: int) -> Attend:
        return lambda q, k, v: attention(q, *self._cache.write(layer, k, v), self._context.mask(layer))


class _SomeTokens:
    """The tokens ``index`` (M,) as one sequence, padded to a multiple of ``TILE`` with the first of them."""

    def __init__(self, update: SparseUpdate, index: Tensor) -> None:
        batch, length, _ = update.y.shape
        self.num = len(index)
        self.index = torch.cat([index, index[:1].expand(-len(index) % TILE)])
        cos, sin = (part.expand(batch, -1, -1, -1)[:, 0].flatten(0, 1)[self.index] for part in update.context.rotary)
        self.rotary: Rotary = (cos[None, None], sin[None, None])
        is_real = update.context.is_real
        self.is_real = None if is_real is None else is_real.reshape(1, -1, 1)[:, self.index]
        self._ragged = RaggedIndex(index, length, TILE)
        self._cache, self._context, self._batch = update.cache, update.context, batch
        self._masks: dict[int | None, Tensor] = {}  # for each attention window

    def pad(self, x: Tensor) -> Tensor:
        """Pad (..., M, D) to a multiple of ``TILE``."""
        return F.pad(x, (0, 0, 0, len(self.index) - self.num))

    def attend(self, layer: int) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            ragged = self._ragged
            q, k, v = (x[0, :, : self.num].transpose(0, 1) for x in (q, k, v))  # (M, heads, head_dim)
            keys, values = self._cache.write_tokens(layer, k, v, ragged.rows, ragged.columns)
            if len(ragged.used_rows) < len(keys):
                keys, values = keys[ragged.used_rows], values[ragged.used_rows]
            queries = ragged.pack(q).transpose(1, 2)  # (R, heads, N, head_dim)
            out = attention(queries, keys, values, self._packed_mask(layer, keys.shape[2])).transpose(1, 2)
            return self.pad(ragged.unpack(out).transpose(0, 1)[None])

        return attend

    def _packed_mask(self, layer: int, size: int) -> Tensor:
        """Which of the S keys each packed query may attend to, (R, 1, N, S) bool."""
        window = self._context.window_of(layer)
        if window not in self._masks:
            ragged, mask = self._ragged, self._context.mask(layer)
            columns = ragged.pack(ragged.columns)
            if mask is None:
                places = torch.arange(size, device=columns.device)
                self._masks[window] = (places <= (columns + self._cache.past)[..., None])[:, None]
            else:
                mask = mask.expand(self._batch, -1, -1, -1)
                self._masks[window] = mask[ragged.used_rows[:, None], 0, columns][:, None]
        return self._masks[window]


class RaggedIndex:
    """Some tokens of each row of a batch (B, T), packed into a dense tensor and back.

    ``index`` (M,) int64, ascending, counts tokens through the flattened batch; ``length`` is T. The packed tensor has a
    row for each of ``used_rows`` (R,), and its ``width`` N is a multiple of ``tile``. Token ``m`` lies at ``rows[m]``,
    ``columns[m]`` of the batch.
    """

    def __init__(self, index: Tensor, length: int, tile: int) -> None:
        self.rows, self.columns = index // length, index % length
        self.used_rows, self._row, counts = torch.unique_consecutive(self.rows, return_inverse=True, return_counts=True)
        self._place = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[self._row]
        self.width = tile * -(-int(counts.max()) // tile)

    def pack(self, x: Tensor) -> Tensor:
        """Return (M, ...) as (R, N, ...): a row for each used row, with zeros after its tokens."""
        packed = x.new_zeros(len(self.used_rows), self.width, *x.shape[1:])
        packed[self._row, self._place] = x
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Return (R, N, ...) as (M, ...)."""
        return packed[self._row, self._place]
