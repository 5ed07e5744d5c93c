"""What every importer of a foreign checkpoint requires: known settings with implemented values, and known tensors."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from attractor.config import suggestion
from attractor.errors import CheckpointError


def require_settings(found: Collection[str], needed: Collection[str], what: str) -> None:
    """Refuse settings that are not known, and missing ones; ``what`` begins the message."""
    for name in sorted(set(found) - set(needed)):
        raise CheckpointError(f"{what} {name!r} is not known, so its effect on the network is unknown too.")
    for name in sorted(set(needed) - set(found)):
        raise CheckpointError(f"{what} {name!r} is missing; the official format always has it.")


def require_value(file: Path, name: str, value: Any, *implemented: Any) -> None:
    """Refuse a value that has no implementation. 0 and False differ."""
    if value not in implemented or isinstance(value, bool) != isinstance(implemented[0], bool):
        only = " or ".join(map(repr, implemented))
        raise CheckpointError(f"{file}: {name}={value!r} is not implemented here; only {only} is.")


def require_tensors(found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Require every tensor in its shape, and no other tensor."""
    for name in sorted(found.keys() - shapes.keys()):
        missing = shapes.keys() - found.keys() or shapes
        raise CheckpointError(f"{folder}: the tensor {name!r} is not known; {suggestion(name, missing)}")
    for name, shape in shapes.items():
        if name not in found:
            raise CheckpointError(f"{folder}: the tensor {name!r} is missing; the checkpoint is incomplete.")
        if tuple(found[name].shape) != tuple(shape):
            raise CheckpointError(
                f"{folder}: the tensor {name!r} has shape {tuple(found[name].shape)}, not {tuple(shape)}."
            )


def settings_error(file: Path, error: Exception) -> CheckpointError:
    """Return the error for settings that our configuration refuses."""
    return CheckpointError(f"{file}: its settings make no model ({' '.join(str(error).split()).rstrip('.')}).")
