"""What layers need to know of the tokens they read, and the keys and values kept for the tokens to come.

A cache is one of ``transformers``' own. It has a slot for every layer that is used once. Of layers that are used over and over, it
keeps the keys and values of the equilibrium, in one slot each; or, where the number of evaluations is fixed, those of
every evaluation, each in a slot of its own, so that the answer is the same as without a cache.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from attractor.errors import ConfigError
from attractor.nn.transformer import Attend, Masked, Rotary, attention


class Reader(Protocol):
    """What a run of layers asks for: the tokens' rotary angles, which of them are real, and the attention of a slot's layer."""

    @property
    def rotary(self) -> Rotary: ...

    @property
    def is_real(self) -> Tensor | None: ...

    def attend(self, slot: int) -> Attend: ...


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """The T tokens being read, and what is kept of those before them.

    Attributes
    ----------
    rotary
        Cosine and sine of the tokens' positions.
    mask
        Who sees whom, see :func:`attractor.nn.transformer.visible`.
    is_real
        (B, T, 1) bool, False at padding; None: all are.
    cache, past
        Where keys and values are kept, and of how many places before the first token.
    offset
        Added to every slot.
    """

    rotary: Rotary
    mask: Tensor | None
    is_real: Tensor | None
    cache: Cache | None = None
    past: int | Tensor = 0
    offset: int = 0

    def attend(self, slot: int) -> Attend:
        """Return the attention of the layer whose keys and values lie in ``slot``."""
        cache = self.cache
        if cache is None:
            return Masked(self.mask)
        return lambda q, k, v: attention(q, *cache.update(k, v, slot + self.offset), self.mask)

    def shift_slots(self, slots: int) -> "AttentionContext":
        """Return this context with every slot moved by so many."""
        return replace(self, offset=self.offset + slots)


def prepare_cache(
    cache: Cache, num_cache_layers: int, shape: tuple[int, int, int], like: Tensor, kind: str, length: int
) -> int | Tensor:
    """Make room for ``num_slots`` slots and return how many places they hold already; a cache that does not fit is refused.

    Parameters
    ----------
    shape
        Of what a slot holds for a token: rows, heads, channels.
    like
        What is read, for dtype and device.
    kind
        Whether keys and values are those of an equilibrium or of a fixed depth: they do not mix.
    length
        How many tokens are to be added.
    """
    if not isinstance(cache, Cache):
        raise ConfigError(f"cache: give a Cache of transformers, such as DynamicCache(), not a {type(cache).__name__}.")
    layers: Any = cache.layers
    for i, layer in enumerate(layers):
        if layer.keys is not None and layer.keys.numel():
            keys = layer.keys
            if (keys.shape[0], keys.shape[1], keys.shape[-1]) != shape:
                raise ConfigError(
                    f"the cache holds keys of shape {tuple(keys.shape)} in slot {i}, and this model and batch need "
                    f"({shape[0]}, {shape[1]}, tokens, {shape[2]}); it belongs to another model or batch: start a new one."
                )
            mixed = torch.is_autocast_enabled(like.device.type)  # which chooses a dtype of its own
            if keys.device != like.device or (keys.dtype != like.dtype and not mixed):
                raise ConfigError(
                    f"the cache holds {keys.dtype} on {keys.device} and the model computes {like.dtype} on {like.device}; "
                    "start a new one."
                )
    if isinstance(cache, DynamicCache):
        layers.extend(DynamicLayer() for _ in range(num_cache_layers - len(layers)))
    if len(layers) < num_cache_layers:
        raise ConfigError(
            f"a {type(cache).__name__} of {len(layers)} slots cannot hold the {num_cache_layers} that this depth needs, one for every "
            "evaluation; take a DynamicCache, depth 0 or 1, or solve to a tolerance."
        )
    filled = [layer.get_seq_length() for layer in layers[:num_cache_layers]]
    if len({int(num) for num in filled}) > 1:
        raise ConfigError(
            f"the cache holds {int(min(filled))} tokens in one slot and {int(max(filled))} in another; it was filled at another "
            "depth, or by another model: start a new one."
        )
    past = filled[0]
    kept = getattr(cache, "kept", kind)
    if past and kept != kind:
        raise ConfigError(f"the cache holds keys and values of {kept}, not of {kind}; start a new one.")
    if type(layers[0]) is StaticLayer and past + length > layers[0].max_cache_len:
        raise ConfigError(
            f"a static cache of {layers[0].max_cache_len} places has no room for {length} tokens after {int(past)}; make it longer."
        )
    cache.kept = kind  # type: ignore[attr-defined]  # a cache travels alone, from one call to the next
    return past.clone() if isinstance(past, Tensor) else past


def require_plain(cache: Cache) -> None:
    """Refuse a cache whose own tensors a solve cannot write to, as it does until a token has settled."""
    if cache.offloading or not all(type(layer) in (DynamicLayer, StaticLayer) for layer in cache.layers):
        raise ConfigError(
            f"an equilibrium is kept in a DynamicCache or StaticCache on the model's device, not in a {type(cache).__name__} that "
            "is offloaded, quantized or sliding; or give a depth."
        )
