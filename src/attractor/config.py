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


def require_whole(owner: Any, least: int, *names: str) -> None:
    """Refuse the named attributes of ``owner`` unless they are whole numbers from ``least`` up."""
    for name in names:
        value = getattr(owner, name)
        if type(value) is not int or value < least:
            raise ConfigError(f"{type(owner).__name__}({name}={value!r}): give a whole number from {least} up.")


def require_positive(owner: Any, *names: str) -> None:
    """Refuse the named attributes of ``owner`` unless they are finite numbers above zero."""
    for name in names:
        value = getattr(owner, name)
        if not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise ConfigError(f"{type(owner).__name__}({name}={value!r}): give a positive number.")


def settings(cls: type) -> dict[str, Any]:
    """Return the settings of a configuration class and their types: its fields, without those another library declares."""
    ours = [
        c for c in reversed(cls.__mro__) if dataclasses.is_dataclass(c) and c.__module__.split(".")[0] != "transformers"
    ]
    return {name: hint for c in ours for name, hint in c.__annotations__.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """Return nested plain data that :func:`from_dict` reads back."""
    values = {name: getattr(config, name) for name in settings(type(config))}
    return {name: to_dict(v) if dataclasses.is_dataclass(v) else v for name, v in values.items()}


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build ``cls``, a dataclass, from nested plain data; every key must be a field, every value of its type."""
    where = where or cls.__name__
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected named settings, got {data!r}.")
    hints = settings(cls)
    for name in data:
        if name not in hints:
            raise ConfigError(f"{where} has no setting {name!r}; {suggestion(name, hints)}")
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def override(config: T, assignments: Iterable[str]) -> T:
    """Return ``config`` with ``path=value`` assignments applied, such as ``train.lr=1e-3``.

    Values are JSON (``3``, ``1e-3``, ``true``, ``null``, ``[1, 2]``); anything else is a string.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path:
            raise ConfigError(f"cannot read {assignment!r}: write path=value, e.g. train.seed=1.")
        group: Any = config
        into = changes
        *groups, name = path.split(".")
        for part in groups:
            group, into = getattr(group, _known(group, part, path)), into.setdefault(part, {})
        if dataclasses.is_dataclass(value := getattr(group, _known(group, name, path))):
            raise ConfigError(f"setting {path!r} is a group; set one of {', '.join(settings(type(value)))} in it.")
        try:
            into[name] = json.loads(text)
        except json.JSONDecodeError:
            into[name] = text
    return change(config, changes)  # all at once: some settings are valid only together


def change(config: T, changes: Mapping[str, Any], *, where: str = "") -> T:
    """Return ``config`` with some settings changed; those of a group are given as a mapping."""
    where = where or type(config).__name__
    values = {}
    for name, hint in settings(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = change(value, changes.get(name, {}), where=f"{where}.{name}")
        elif name in changes:
            value = _convert(hint, changes[name], f"{where}.{name}")
        values[name] = value
    return type(config)(**values)


def _known(group: Any, name: str, path: str) -> str:
    if not dataclasses.is_dataclass(group):
        raise ConfigError(f"unknown setting {path!r}: {name!r} is asked of a single value, not a group.")
    names = settings(type(group))
    if name not in names:
        raise ConfigError(f"unknown setting {path!r}: {name!r} does not exist there; {suggestion(name, names)}")
    return name


def _convert(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (UnionType, typing.Union) else (hint,)
    if isinstance(value, Mapping):  # of several groups, the one whose settings these are, or most nearly
        options = tuple(sorted(options, key=lambda option: len(value.keys() ^ settings(option).keys())))
    for option in options:
        origin = typing.get_origin(option) or option
        if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
            return from_dict(typing.cast(type, option), value, where=where)
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
