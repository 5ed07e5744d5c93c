"""States that are not one real tensor: tuples, dictionaries, dataclasses, complex numbers, packed into one tensor."""

import dataclasses
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from attractor.errors import ConfigError

Leaf = tuple[torch.Size, torch.dtype]  # of one equation's part in a leaf


@dataclass(frozen=True)
class Packing:
    """How a nested structure of tensors (*leading, *trailing) becomes one real tensor (*leading, D), and back."""

    structure: pytree.TreeSpec
    names: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    leading: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, state: Any, equation_dims: int | None, causal: bool) -> "Packing":
        """Return the packing of ``state``.

        ``equation_dims`` counts the trailing dimensions of the leaf with the most of them; all others have the same
        leading dimensions. The default is one equation per row, with ``causal`` one per row and time.

        Raises
        ------
        ConfigError
            For a leaf that is no floating-point or complex tensor, and for leaves of different leading shapes.
        """
        names, leaves, structure = _flatten(state)
        for name, leaf in zip(names, leaves, strict=True):
            if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
                what = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ConfigError(
                    f"fixed_point: {name} is {what}; the state holds floating-point or complex tensors. Close over "
                    "everything else, or return it with has_aux=True."
                )
            if leaf.device != leaves[0].device:
                raise ConfigError(
                    f"fixed_point: {name} is on {leaf.device} and {names[0]} on {leaves[0].device}; move one."
                )
        if not leaves:
            raise ConfigError(f"fixed_point: y0 is {state!r}, which holds no tensor.")
        fewest, most = min(leaf.ndim for leaf in leaves), max(leaf.ndim for leaf in leaves)
        num_leading = min(1 + causal, fewest) if equation_dims is None else most - equation_dims
        if not 0 <= num_leading <= fewest:
            raise ConfigError(
                f"fixed_point(equation_dims={equation_dims}): the leaves of y0 have "
                f"{', '.join(f'{name} {tuple(leaf.shape)}' for name, leaf in zip(names, leaves, strict=True))}; "
                "they must share the dimensions before one equation."
            )
        leading = next(leaf for leaf in leaves if leaf.ndim == most).shape[:num_leading]
        for name, leaf in zip(names, leaves, strict=True):
            if leaf.shape[:num_leading] != leading:
                raise ConfigError(
                    f"fixed_point: {name} of shape {tuple(leaf.shape)} does not begin with {tuple(leading)}, as another "
                    "leaf of y0 does; all leaves have the same leading dimensions."
                )
        dtype = reduce(torch.promote_types, (leaf.real.dtype for leaf in leaves), torch.float32)
        return cls(structure, names, tuple((leaf.shape[num_leading:], leaf.dtype) for leaf in leaves), leading, dtype)

    @property
    def is_mixed(self) -> bool:
        """Whether some leaves have a lower precision than the packed tensor."""
        return any(torch.finfo(dtype).bits != torch.finfo(self.dtype).bits for _, dtype in self.leaves)

    def pack(self, state: Any) -> Tensor:
        """Return ``state`` as (*leading, D).

        Raises
        ------
        ConfigError
            For another structure, shape or dtype than that of ``y0``, by the name of the leaf.
        """
        names, leaves, structure = _flatten(state)
        if structure != self.structure:
            missing, new = set(self.names) - set(names), set(names) - set(self.names)
            changes = [*(f"{name} is missing" for name in sorted(missing)), *(f"{name} is new" for name in sorted(new))]
            difference = ", ".join(changes) or " ".join(f"{structure}, not {self.structure}".split())
            raise ConfigError(f"fixed_point: update returned another structure than that of y0: {difference}.")
        parts = []
        for name, leaf, (shape, dtype) in zip(names, leaves, self.leaves, strict=True):
            expected = self.leading + shape
            if (
                not isinstance(leaf, Tensor)
                or leaf.shape != expected
                or not (leaf.dtype == dtype or is_from_autocast(leaf))
            ):
                got = f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ConfigError(f"fixed_point: update returned {got} for {name} of {tuple(expected)} {dtype}.")
            real = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
            parts.append(real.reshape(*self.leading, prod(real.shape[len(self.leading) :])).to(self.dtype))
        return torch.cat(parts, dim=-1)

    def unpack(self, y: Tensor) -> Any:
        """Return ``y`` (..., *leading, D) in the structure, shapes and dtypes of ``y0``."""
        parts = y.split([prod(shape) * (1 + dtype.is_complex) for shape, dtype in self.leaves], dim=-1)
        leaves = []
        for part, (shape, dtype) in zip(parts, self.leaves, strict=True):
            if dtype.is_complex:
                part = torch.view_as_complex(part.unflatten(-1, (*shape, 2)).contiguous())
            leaves.append(part.reshape(*y.shape[:-1], *shape).to(dtype))
        return pytree.tree_unflatten(leaves, self.structure)


def _flatten(state: Any) -> tuple[tuple[str, ...], list[Any], pytree.TreeSpec]:
    """Return the names of the leaves (``y0['a'][0]``), the leaves and the structure."""
    for leaf in pytree.tree_leaves(state):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            pytree.register_dataclass(type(leaf))
            return _flatten(state)
    paths, structure = pytree.tree_flatten_with_path(state)
    return tuple(f"y0{pytree.keystr(path)}" for path, _ in paths), [leaf for _, leaf in paths], structure


def is_from_autocast(x: Tensor) -> bool:
    """Whether ``x`` has the low precision of an active autocast."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):  # such as meta
        return False
    return torch.is_autocast_enabled(kind) and x.dtype == torch.get_autocast_dtype(kind)
