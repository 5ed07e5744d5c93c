"""What the layers of a language model need to know about the tokens they read: positions, padding, attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from attractor.models.language.inference.cache import EquilibriumCache
from attractor.nn.rotary import Rotary
from attractor.nn.transformer import Attend, MaskedAttention, attention


class AttentionContext(Protocol):
    """The tokens that layers read: rotary angles, which tokens are real, and the attention of each layer."""

    rotary: Rotary
    is_real: Tensor | None

    def attend(self, layer: int) -> Attend: ...


@dataclass(kw_only=True)
class TokenContext:
    """All T new tokens of a batch, and the keys and values of the tokens before them.

    Attributes
    ----------
    rotary
        Cosine and sine (B, 1, T, head_dim) of the tokens' positions.
    masks, window_of
        The mask (B or 1, 1, T, S) bool of every attention window, see
        :func:`attractor.nn.transformer.make_attention_mask`; and the window of a layer.
    is_real
        (B, T, 1) bool, False at padding; None where no token is padding.
    cache
        Where keys and values are kept; None keeps nothing.
    states
        Where the backbone's layers append their outputs; None where they are not wanted.
    """

    rotary: Rotary
    masks: dict[int | None, Tensor | None]
    window_of: Callable[[int], int | None]
    is_real: Tensor | None
    cache: EquilibriumCache | None = None
    states: list[Tensor] | None = None

    def mask(self, layer: int) -> Tensor | None:
        """Return the mask of a layer."""
        return self.masks[self.window_of(layer)]

    def attend(self, layer: int) -> Attend:
        """Return the attention of a layer. With a cache, every call takes the next slot."""
        if self.cache is None:
            return MaskedAttention(self.mask(layer))
        cache, slot = self.cache, self.cache.take_slot()
        return lambda q, k, v: attention(q, *cache.append(slot, k, v), self.mask(layer))
