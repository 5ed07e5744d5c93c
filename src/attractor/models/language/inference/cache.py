"""Keys and values for the tokens to come, kept in any cache of ``transformers``.

A cache consists of slots, each with the keys and values of all tokens so far. At the equilibrium, every layer has one
slot, with the keys and values of the converged states. At a fixed depth, every use of a layer fills the next slot, so
that each evaluation attends to the same evaluation of the earlier tokens. The class of a slot says which of the two it
holds.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, StaticLayer

from attractor.errors import ConfigError


class EquilibriumLayer(DynamicLayer):
    """A growing slot with the keys and values of an equilibrium."""


class StaticEquilibriumLayer(StaticLayer):
    """A preallocated slot with the keys and values of an equilibrium."""


EQUILIBRIUM_CLASS: dict[type, type] = {DynamicLayer: EquilibriumLayer, StaticLayer: StaticEquilibriumLayer}
FIXED_DEPTH_CLASS = {new: old for old, new in EQUILIBRIUM_CLASS.items()}


@dataclass(kw_only=True)
class EquilibriumCache:
    """The slots of a ``transformers`` cache that one forward pass fills, after ``past`` tokens.

    At a fixed depth, the next use of a layer fills ``next_slot``.
    """

    cache: Cache
    next_slot: int = 0
    past: int | Tensor = 0
    _written: set[int] = field(default_factory=set)

    @classmethod
    def open(
        cls, cache: Cache, slots: range, *, equilibrium: bool, x: Tensor, num_heads: int, head_dim: int
    ) -> "EquilibriumCache":
        """Return ``slots`` of a cache, ready for the tokens ``x`` (B, T, D); missing slots of a DynamicCache are added.

        Raises
        ------
        ConfigError
            For a cache of another model, batch, depth, dtype or device, and for one that cannot hold these tokens.
        """
        if not isinstance(cache, Cache):
            kind = type(cache).__name__
            raise ConfigError(f"cache: give a Cache of transformers, such as DynamicCache(), not a {kind}.")
        _require_fit(cache, x, num_heads, head_dim)
        layers: Any = cache.layers
        if isinstance(cache, DynamicCache):
            layers.extend(DynamicLayer() for _ in range(slots.stop - len(layers)))
        if len(layers) < slots.stop:
            raise ConfigError(
                f"a {type(cache).__name__} of {len(layers)} slots cannot hold the {slots.stop} that this depth needs, one for "
                "every evaluation; use a DynamicCache, depth 0 or 1, or a tolerance."
            )
        lengths = [layers[slot].get_seq_length() for slot in slots]
        if len({int(length) for length in lengths}) > 1:
            raise ConfigError(
                f"the cache holds {int(min(lengths))} tokens in one slot and {int(max(lengths))} in another; it was filled at "
                "another depth, or by another model: start a new one."
            )
        past = lengths[0] if lengths else 0
        if equilibrium:
            _require_writable(cache)
        for slot in slots:
            layers[slot] = _with_kind(layers[slot], equilibrium, past)
        if (
            lengths
            and isinstance(first := layers[slots.start], StaticLayer)
            and past + x.shape[1] > first.max_cache_len
        ):
            raise ConfigError(
                f"a static cache of {first.max_cache_len} places has no room for {x.shape[1]} tokens after {int(past)}; "
                "make it longer."
            )
        return cls(cache=cache, next_slot=slots.start, past=past.clone() if isinstance(past, Tensor) else past)

    def take_slot(self) -> int:
        """Return the next slot of a fixed depth."""
        self.next_slot += 1
        return self.next_slot - 1

    def append(self, slot: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the keys and values (B, heads, T, head_dim) of new tokens, and return those of all tokens."""
        return self.cache.update(k, v, slot)

    def write(self, slot: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Do as :meth:`append` the first time; afterwards replace the keys and values of these tokens."""
        if slot not in self._written:
            self._written.add(slot)
            return self.append(slot, k, v)
        places: Any = slice(self.past, self.past + k.shape[2])
        if isinstance(self.past, Tensor):  # of a static cache, on the device; a slice would have to wait for it
            places = self.past + torch.arange(k.shape[2], device=k.device)
        keys, values = self.stored(slot)
        keys[:, :, places], values[:, :, places] = k, v
        return keys, values

    def write_tokens(self, slot: int, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Replace the keys and values, now (M, heads, head_dim), of new tokens at ``rows`` and ``columns`` (M,)."""
        keys, values = self.stored(slot)
        places = columns + self.past
        keys[rows, :, places] = k.to(keys.dtype)
        values[rows, :, places] = v.to(values.dtype)
        return keys, values

    def stored(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return the keys and values of a slot, each (B, heads, S, head_dim)."""
        layer: Any = self.cache.layers[slot]
        return layer.keys, layer.values


def _require_fit(cache: Cache, x: Tensor, num_heads: int, head_dim: int) -> None:
    """Refuse a cache that another model or batch has filled."""
    layers: Any = cache.layers
    for slot, layer in enumerate(layers):
        if layer.keys is None or not layer.keys.numel():
            continue
        keys = layer.keys
        if (keys.shape[0], keys.shape[1], keys.shape[-1]) != (len(x), num_heads, head_dim):
            raise ConfigError(
                f"the cache holds keys of shape {tuple(keys.shape)} in slot {slot}, and this model and batch need "
                f"({len(x)}, {num_heads}, tokens, {head_dim}); it belongs to another model or batch: start a new one."
            )
        autocast = torch.is_autocast_enabled(x.device.type)  # which chooses its own dtype
        if keys.device != x.device or (keys.dtype != x.dtype and not autocast):
            raise ConfigError(
                f"the cache holds {keys.dtype} on {keys.device} and the model computes {x.dtype} on {x.device}; "
                "start a new one."
            )


def _require_writable(cache: Cache) -> None:
    """Refuse a cache that a solve cannot write to: it replaces keys and values until a token converges."""
    if cache.offloading or not all(type(layer) in {**EQUILIBRIUM_CLASS, **FIXED_DEPTH_CLASS} for layer in cache.layers):
        raise ConfigError(
            f"an equilibrium is kept in a DynamicCache or StaticCache on the model's device, not in a {type(cache).__name__} that "
            "is offloaded, quantized or sliding; or give a depth."
        )


def _with_kind(layer: Any, equilibrium: bool, past: int | Tensor) -> Any:
    """Return ``layer``, or an empty slot in its place where it is empty and of the other kind."""
    if (type(layer) in FIXED_DEPTH_CLASS) == equilibrium:
        return layer
    if int(past):
        kinds = ("the equilibrium", "a fixed depth")
        holds, needs = kinds[equilibrium], kinds[not equilibrium]
        raise ConfigError(f"the cache holds keys and values of {holds}, not of {needs}; start a new one.")
    new = (EQUILIBRIUM_CLASS if equilibrium else FIXED_DEPTH_CLASS)[type(layer)]
    return new(max_cache_len=layer.get_max_length())
