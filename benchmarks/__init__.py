"""Side-by-side measurements, one command each. Both sides run in one process on the same work; results go to ``results/``."""

import dataclasses
import reprlib
from typing import Any


def with_spread(mean: float, spread: float | None, digits: int) -> str:
    """Return "mean ± spread", or the mean alone where the spread is None: one seed has none."""
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def changed_setting(stored: Any, settings: Any, config: Any, path: str = "") -> str:
    """Return a sentence on the first setting in which a stored run differs, or an empty one if there is none.

    ``settings`` are those of ``config``, a configuration or a dict of configurations, as JSON stores them. A setting that
    did not exist when the run was stored had the default of its class; one without a default differs.
    """
    if not (isinstance(stored, dict) and isinstance(settings, dict)):
        return "" if stored == settings else f"{path} is {reprlib.repr(settings)}, and was {reprlib.repr(stored)}."
    defaults = {}
    if dataclasses.is_dataclass(config):
        for f in dataclasses.fields(config):
            defaults[f.name] = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    for name in {**settings, **stored}:
        value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        if name in stored or value != defaults.get(name, dataclasses.MISSING):
            old, new = (found.get(name, "not there") for found in (stored, settings))
            if sentence := changed_setting(old, new, value, f"{path}.{name}".lstrip(".")):
                return sentence
    return ""
