"""Side-by-side measurements, one command each. Both sides run in one process on the same work; results go to ``results/``."""

from typing import Any


def with_spread(mean: float, spread: float | None, digits: int) -> str:
    """Return "mean ± spread", or the mean alone where the spread is None: one seed has none."""
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def is_same(stored: Any, settings: Any) -> bool:
    """Whether a run was made with these settings. One that did not exist then has its default, and changes no run."""
    if isinstance(stored, dict) and isinstance(settings, dict):
        return all(name in settings and is_same(value, settings[name]) for name, value in stored.items())
    return bool(stored == settings)
