"""Configurations: frozen dataclasses to and from plain data, and changed by path. Unknown names are refused, never dropped."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar

from attractor.errors import ConfigError

T = TypeVar("T")


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Return the end of a sentence that offers the nearest valid name, or all of them."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(valid)}."


def to_dict(config: Any) -> dict[str, Any]:
    """Return nested plain data that :func:`from_dict` reads back."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build ``cls``, a dataclass, from nested plain data; every key must be a field, every value of its type."""
    where = where or cls.__name__
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected named settings, got {data!r}.")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    for name in data:
        if name not in names:
            raise ConfigError(f"{where} has no setting {name!r}; {suggestion(name, names)}")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def override(config: T, assignments: Iterable[str]) -> T:
    """Return ``config`` with ``path=value`` assignments applied, such as ``train.lr=1e-3``.

    Values are JSON (``3``, ``1e-3``, ``true``, ``null``, ``[1, 2]``); anything else is a string.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"cannot read {assignment!r}: write path=value, e.g. train.seed=1.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        config = _set(config, path.split("."), value, path)
    return config


def _set(config: Any, path: list[str], value: Any, whole: str) -> Any:
    names = [f.name for f in dataclasses.fields(config)]
    name, rest = path[0], path[1:]
    if name not in names:
        raise ConfigError(f"unknown setting {whole!r}: {name!r} does not exist there; {suggestion(name, names)}")
    old = getattr(config, name)
    if rest and not dataclasses.is_dataclass(old):
        raise ConfigError(f"unknown setting {whole!r}: {name!r} is a single value, not a group.")
    if rest:
        new = _set(old, rest, value, whole)
    elif dataclasses.is_dataclass(old):
        inner = ", ".join(f.name for f in dataclasses.fields(old))
        raise ConfigError(f"setting {whole!r} is a group; set one of {inner} in it.")
    else:
        new = _convert(typing.get_type_hints(type(config))[name], value, whole)
    return dataclasses.replace(config, **{name: new})


def _convert(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (UnionType, typing.Union) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_dict(option, value, where=where)  # pyright: ignore[reportArgumentType]
        if origin is tuple and isinstance(value, list | tuple):
            element = typing.get_args(option)[0]
            return tuple(_convert(element, v, where) for v in value)
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is NoneType and value is None:
            return None
        if origin in (int, bool, str) and type(value) is origin:
            return value
    names = " or ".join("null" if o is NoneType else getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{where} must be {names}, not {value!r}.")
