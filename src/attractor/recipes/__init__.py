"""Recipes: runs by name. A recipe is a frozen dataclass that holds every setting of a run.

``recipes.get("sudoku/6x6")`` returns one by name, ``recipes.override`` changes some of its settings, and functions such
as ``recipes.language("tiny")`` and ``recipes.sudoku(6)`` build them.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from attractor.config import override, suggestion
from attractor.errors import ConfigError
from attractor.recipes.puzzles import (
    REASONER_FAMILIES,
    WIDTHS_27M,
    MazeDataConfig,
    PuzzleRecipe,
    SudokuDataConfig,
    fit_to_puzzles,
    maze,
    maze_control,
    published,
    sudoku,
)
from attractor.recipes.sizes import LANGUAGE_FAMILIES, SIZES

if TYPE_CHECKING:
    from attractor.recipes.language_models import LanguageRecipe, fit_to_model, language, retrofit

    Recipe = PuzzleRecipe | LanguageRecipe

RETROFIT = "language/retrofit"  # the recipe that needs a checkpoint to start from


def __getattr__(name: str) -> Any:
    """Import the recipes of language models when they are used, because they need ``transformers``."""
    if name in ("LanguageRecipe", "fit_to_model", "language", "retrofit"):
        return getattr(importlib.import_module("attractor.recipes.language_models"), name)
    if name == "Recipe":
        return PuzzleRecipe | __getattr__("LanguageRecipe")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def names() -> list[str]:
    """Return the names of all recipes."""
    return list(_builders())


def get(name: str) -> "Recipe":
    """Return the recipe with a name. Raises ConfigError, with the nearest name, if there is none."""
    builders = _builders()
    if name not in builders:
        raise ConfigError(f"there is no recipe {name!r}; {suggestion(name, builders)}")
    return builders[name]()


def _builders() -> dict[str, Callable[[], Any]]:
    named: dict[str, Callable[[], Any]] = {"maze": maze, "maze-control": lambda: maze_control(num_steps=4000)}
    for family in REASONER_FAMILIES:
        for size in (6, 9):
            named[_name(f"sudoku/{size}x{size}", family)] = partial(sudoku, size, family)
        for task, kind in (("sudoku/extreme", "sudoku"), ("maze/hard", "maze")):
            named[_name(task, family)] = partial(published, kind, family)
            if family in ("attractor", "trm"):
                named[_name(f"{task}-27m", family)] = partial(published, kind, family, width=WIDTHS_27M[kind])
    for size_name in SIZES:
        for family in LANGUAGE_FAMILIES:
            named[_name(f"language/{size_name}", family)] = partial(_language, size_name, family)
    named[RETROFIT] = lambda: __getattr__("retrofit")()
    return named


def _name(task: str, family: str) -> str:
    return task if family == "attractor" else f"{task}-{family}"


def _language(size: str, family: str) -> "LanguageRecipe":
    recipe: LanguageRecipe = __getattr__("language")(size, family)
    return recipe


__all__ = [
    "LANGUAGE_FAMILIES",
    "REASONER_FAMILIES",
    "RETROFIT",
    "SIZES",
    "LanguageRecipe",
    "MazeDataConfig",
    "PuzzleRecipe",
    "Recipe",
    "SudokuDataConfig",
    "fit_to_model",
    "fit_to_puzzles",
    "get",
    "language",
    "maze",
    "maze_control",
    "names",
    "override",
    "published",
    "retrofit",
    "sudoku",
]
