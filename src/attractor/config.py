"""Configurations are frozen dataclasses. This module converts them to plain data and back, and changes them by path.

Plain data of a union member, such as ``TRMConfig`` in ``AttractorReasonerConfig | TRMConfig``, has a key ``"type"``
with the name of its class. Unknown names are refused; the message offers the nearest valid name.
"""

import dataclasses
import difflib
import inspect
import json
import math
import re
import reprlib
import typing
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar

from attractor.errors import ConfigError

T = TypeVar("T")
TYPE = "type"  # the key that names the class of a union member


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Return the end of a sentence that offers the nearest valid name, or all of them."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    near = near or sorted((v for v in valid if len(name) > 1 and name.lower() in v.lower()), key=len)[:3]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose one of {', '.join(valid)}."


def require_number(name: str, value: Any) -> None:
    """Raise a ConfigError for a number that is NaN, infinite, or not below 2⁶³."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value!r}: give a finite number.")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ConfigError(f"{name} is too large; give a whole number below 2**63.")


def require_finite(owner: Any) -> None:
    """Raise a ConfigError if a setting of ``owner`` is a number that :func:`require_number` refuses."""
    for name in settings(type(owner)):
        value = getattr(owner, name)
        for item in value if isinstance(value, tuple) else (value,):
            require_number(f"{type(owner).__name__}.{name}", item)


@typing.dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def config_class(cls: type[T]) -> type[T]:
    """Make a frozen dataclass with keyword arguments, all of whose numbers are finite. Every configuration is one."""
    check = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        require_finite(self)
        if check is not None:
            check(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def require_whole(owner: Any, least: int, *names: str) -> None:
    """Raise a ConfigError if a named attribute of ``owner`` is not an integer of ``least`` or more."""
    for name in names:
        value = getattr(owner, name)
        if type(value) is not int or value < least:
            raise ConfigError(f"{type(owner).__name__}({name}={value!r}): give a whole number from {least} up.")


def require_positive(owner: Any, *names: str) -> None:
    """Raise a ConfigError if a named attribute of ``owner`` is not a finite number above zero."""
    for name in names:
        value = getattr(owner, name)
        if not (isinstance(value, int | float) and 0 < value < float("inf")):
            raise ConfigError(f"{type(owner).__name__}({name}={value!r}): give a positive number.")


def require_type(where: str, name: str, value: Any, kind: type, example: str) -> None:
    """Raise a ConfigError if the argument ``name`` of ``where`` is not an instance of ``kind``, such as ``example``."""
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else repr(value)
        raise ConfigError(f"{where}({name}=...): got {given}; give a {kind.__name__}, such as {example}.")


def settings(cls: type) -> dict[str, Any]:
    """Return the settings of a configuration class and their types, without those that ``transformers`` declares."""
    ours = [
        c for c in reversed(cls.__mro__) if dataclasses.is_dataclass(c) and c.__module__.split(".")[0] != "transformers"
    ]
    return {name: hint for c in ours for name, hint in c.__annotations__.items()}


def to_dict(config: Any) -> dict[str, Any]:
    """Return nested plain data that :func:`from_dict` reads back."""
    data = {}
    for name, hint in settings(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            tag = {TYPE: type(value).__name__} if len(_classes(hint)) > 1 else {}
            value = {**tag, **to_dict(value)}
        data[name] = value
    return data


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build the dataclass ``cls`` from nested plain data.

    Parameters
    ----------
    cls
        The class to build.
    data
        Its settings. Every key must be a setting and every value of the setting's type. Where a setting can be one of
        several classes, its data must have a key ``"type"`` with the name of the class.
    where
        The name for ``data`` in error messages.

    Raises
    ------
    ConfigError
        If a setting is unknown, missing, or of the wrong type.
    """
    where = where or cls.__name__
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected named settings, got {reprlib.repr(data)}.")
    data = dict(data)
    if (tag := data.pop(TYPE, cls.__name__)) != cls.__name__:
        raise ConfigError(f"{where}: type must be {cls.__name__!r}, not {tag!r}.")
    hints = settings(cls)
    for name in data:
        if name not in hints:
            raise ConfigError(f"{where} has no setting {name!r}; {suggestion(name, hints)}")
    values = {name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:  # a setting without a default is missing
        raise ConfigError(f"{where} cannot be built ({error}).") from error


def override(config: T, changes: Mapping[str, Any] | Iterable[str]) -> T:
    """Return ``config`` with the settings at some paths changed, all at once.

    Parameters
    ----------
    config
        A configuration, such as a recipe.
    changes
        Values by path, such as ``{"train.num_steps": 100}``; or assignments, such as ``["train.num_steps=100"]``, whose
        values are JSON (``3``, ``1e-3``, ``true``, ``null``, ``[1, 2]``) or, if they are not valid JSON, strings.
        ``{"model.type": "TRMConfig"}`` replaces the model's configuration by the defaults of another class.

    Raises
    ------
    ConfigError
        If a path is unknown or a value does not fit.
    """
    if not isinstance(changes, Mapping):
        changes = dict(_read_assignment(text) for text in changes)
    nested: dict[str, Any] = {}
    for path, value in changes.items():
        into = nested
        *groups, name = path.split(".")
        for depth, group in enumerate(groups, start=1):
            into = into.setdefault(group, {})
            if not isinstance(into, dict):
                raise ConfigError(
                    f"setting {'.'.join(groups[:depth])!r} and settings in it are both given; give one of them."
                )
        into[name] = value
    return change(config, nested)


def change(config: T, changes: Mapping[str, Any]) -> T:
    """Return ``config`` with some settings changed; a group is given as a mapping of its settings. Raises ConfigError."""
    return _change(config, changes, "", all_paths(config))


def all_paths(config: Any) -> list[str]:
    """Return the path of every setting of a configuration, such as ``"train.optimizer.lr"``."""
    return [path for path, *_ in describe(config)]


def describe(config: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Return path, value and meaning of every setting. Meanings are those in the docstrings of the classes."""
    meanings: dict[str, str] = {}
    for cls in reversed(type(config).__mro__):
        section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes\n----------\n")[2]
        for names, text in re.findall(r"^(\w[\w, ]*)\n((?: +.*(?:\n|$))+)", section, re.MULTILINE):
            plain = re.sub(r":\w+:`[\w.]*?(\w+)`|``", r"\1", " ".join(text.split()))
            meanings |= dict.fromkeys(names.split(", "), plain)
    found: list[tuple[str, Any, str]] = []
    for name in settings(type(config)):
        value = getattr(config, name)
        is_group = dataclasses.is_dataclass(value)
        found += describe(value, f"{prefix}{name}.") if is_group else [(prefix + name, value, meanings.get(name, ""))]
    return found


def _read_assignment(text: str) -> tuple[str, Any]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"cannot read {text!r}: write path=value, e.g. train.seed=1.")
    try:
        return path, json.loads(value)
    except (ValueError, RecursionError):  # no JSON, or deeper or longer than Python reads
        return path, value


def _change(config: Any, changes: Mapping[str, Any], prefix: str, paths: list[str]) -> Any:
    hints = settings(type(config))
    for name in changes:
        if name not in hints:
            raise ConfigError(_unknown(name, changes[name], prefix, hints, paths))
    values = {}
    for name, hint in hints.items():
        value, where = getattr(config, name), prefix + name
        if name in changes:
            value = _changed(value, changes[name], hint, where, paths)
        values[name] = value
    return type(config)(**values)


def _changed(value: Any, new: Any, hint: Any, where: str, paths: list[str]) -> Any:
    if not dataclasses.is_dataclass(value):
        if isinstance(new, Mapping) and not _classes(hint):
            raise ConfigError(
                f"unknown setting {f'{where}.{next(iter(new))}'!r}: {where!r} is a single value, not a group."
            )
        return _convert(hint, new, where)
    if isinstance(new, _classes(hint)):
        return new
    if not isinstance(new, Mapping):
        raise ConfigError(f"setting {where!r} is a group; set one of {', '.join(settings(type(value)))} in it.")
    if TYPE not in new:
        return _change(value, new, f"{where}.", paths)
    cls = _member(_classes(hint), new, where)
    rest = {name: item for name, item in new.items() if name != TYPE}
    if cls is not type(value):  # start from its own defaults: equal names need not have equal meanings
        fields = dataclasses.fields(cls)
        if any(f.default is f.default_factory is dataclasses.MISSING for f in fields if f.init):
            return from_dict(cls, rest, where=where)
        value = cls()
    return _change(value, rest, f"{where}.", paths)


def _unknown(name: str, value: Any, prefix: str, hints: Iterable[str], paths: list[str]) -> str:
    """Return the sentence for an unknown setting: those of that name elsewhere, or of similar names."""
    given, last = prefix + name, name
    while isinstance(value, Mapping) and value:  # the path goes on
        last, value = next(iter(value.items()))
        given += f".{last}"
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rsplit(".", 1)[-1], []).append(path)
    near = difflib.get_close_matches(name, hints, n=1, cutoff=0.5) if last == name else []
    found = by_name.get(last) or [prefix + near[0] if near else ""]
    if not found[0]:
        similar = [n for n in by_name if len(last) > 2 and last in n] or difflib.get_close_matches(last, by_name, n=2)
        found = [path for n in similar for path in by_name[n]]
    if found:
        return f"unknown setting {given!r}; did you mean {' or '.join(map(repr, found[:3]))}?"
    return f"unknown setting {given!r}; {suggestion(last, hints)} attractor show RECIPE lists all settings."


def _classes(hint: Any) -> tuple[type, ...]:
    """Return the dataclasses that a setting may hold."""
    return tuple(option for option in _options(hint) if dataclasses.is_dataclass(option) and isinstance(option, type))


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (UnionType, typing.Union) else (hint,)


def _member(classes: tuple[type, ...], data: Mapping[str, Any], where: str) -> type:
    """Return the class that ``data`` names."""
    names = {cls.__name__: cls for cls in classes}
    if TYPE not in data and len(classes) == 1:
        return classes[0]
    if TYPE not in data:
        raise ConfigError(f"{where} can be of several types; add {TYPE!r}: one of {', '.join(names)}.")
    if not isinstance(data[TYPE], str) or data[TYPE] not in names:
        raise ConfigError(f"{where}.{TYPE}={data[TYPE]!r} is unknown; {suggestion(str(data[TYPE]), names)}")
    return names[data[TYPE]]


def _convert(hint: Any, value: Any, where: str) -> Any:
    options = _options(hint)
    require_number(where, value)
    if isinstance(value, Mapping) and (classes := _classes(hint)):
        return from_dict(_member(classes, value, where), value, where=where)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is tuple and isinstance(value, list | tuple):
            element = typing.get_args(option)[0]
            return tuple(_convert(element, v, where) for v in value)
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is NoneType and value is None:
            return None
        if origin in (int, bool, str) and type(value) is origin:
            return value
        if origin is dict and isinstance(value, Mapping):
            return dict(value)
        if isinstance(origin, type) and dataclasses.is_dataclass(origin) and isinstance(value, origin):
            return value
    names = " or ".join("null" if o is NoneType else getattr(o, "__name__", str(o)) for o in options)
    raise ConfigError(f"{where} must be {names}, not {reprlib.repr(value)}.")
