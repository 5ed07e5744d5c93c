"""Recipes: runs by name. A recipe is a frozen dataclass that holds every setting of a run.

``recipes.get("sudoku/6x6")`` returns one by name, ``recipes.override`` changes some of its settings, and functions such
as ``recipes.language("tiny")`` and ``recipes.sudoku(6)`` build them.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from attractor.config import override, suggestion
from attractor.errors import ConfigError
from attractor.recipes.puzzles import (
    NAMED_FAMILIES,
    REASONER_FAMILIES,
    WIDTHS_27M,
    ArcDataConfig,
    MazeDataConfig,
    PuzzleRecipe,
    SudokuDataConfig,
    arc,
    fit_to_puzzles,
    maze,
    maze_walls,
    published,
    sudoku,
    sudoku_symmetric,
)
from attractor.recipes.sizes import LANGUAGE_FAMILIES, SIZES

if TYPE_CHECKING:
    from attractor.recipes.language_models import LanguageRecipe, chat, fit_to_model, language, retrofit

    Recipe = PuzzleRecipe | LanguageRecipe

# The recipes that start from a checkpoint and take the sizes of its model: the function that builds each, its settings.
FROM_CHECKPOINT: dict[str, tuple[str, dict[str, Any]]] = {
    "language/retrofit": ("retrofit", {}),
    "language/retrofit-frozen": ("retrofit", {"freeze": "backbone"}),
    "language/retrofit-distilled": ("retrofit", {"freeze": "backbone", "distillation": 0.5}),
    "language/chat": ("chat", {}),
}


def __getattr__(name: str) -> Any:
    """Import the recipes of language models when they are used, because they need ``transformers``."""
    if name in ("LanguageRecipe", "chat", "fit_to_model", "language", "retrofit"):
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


@dataclass(frozen=True)
class RecipeSummary:
    """What a recipe trains, in one line. ``variants`` are the endings of recipes of other models for the same task."""

    name: str
    text: str
    num_weights: int | None
    length: str
    variants: tuple[str, ...]


def summaries() -> list[RecipeSummary]:
    """Return a summary of every task. Weights of language models are those with the vocabulary of the recipe."""
    found = []
    for name, text in _TEXTS.items():
        variants = tuple(other.removeprefix(name) for other in names() if other.startswith(f"{name}-"))
        size = SIZES.get(name.rpartition("/")[2])
        if size is not None:  # without transformers, whose import takes seconds
            tokens = size.tokens_per_weight * size.num_weights / 1e9
            length = "15 min" if name == "language/tiny" else f"{tokens:.3g}B tokens"
            found.append(RecipeSummary(name, text, size.num_weights, length, variants))
        elif name in FROM_CHECKPOINT:
            length = "2 epochs" if name == "language/chat" else "1,000 steps"
            found.append(RecipeSummary(name, text, None, length, variants))
        else:
            recipe = get(name)
            with torch.device("meta"):
                num_weights = sum(weight.numel() for weight in recipe.model.build().parameters())
            seconds = recipe.train.seconds
            length = f"{recipe.train.num_steps:,} steps" if seconds is None else f"{seconds / 60:g} min"
            found.append(RecipeSummary(name, text, num_weights, length, variants))
    return found


_TEXTS = {
    "maze": "small mazes of random walls, on a CPU; attractor demo trains it",
    "sudoku/6x6": "Sudokus of 6 digits, on a CPU",
    "sudoku/9x9": "Sudokus of 9 digits, on a CPU",
    "sudoku/hardest": "Sudokus that need guesses, of a csv file, on a CPU",
    "sudoku/extreme": "Sudoku-Extreme at the published size, on a GPU",
    "maze/walls": "mazes of random walls as in Maze-Hard, on a CPU",
    "maze/hard": "Maze-Hard at the published size, on a GPU",
    "maze/unique": "Maze-Unique at the published size, on a GPU",
    "arc": "ARC-AGI at the published size, with TRM, on GPUs",
    "language/tiny": "text, on a CPU",
    **{f"language/{size}": "text at a size of the paper, on GPUs" for size in SIZES if size != "tiny"},
    "language/chat": "conversations, from a checkpoint whose tokenizer has a chat template",
    "language/retrofit": "text, from a pretrained model that attractor retrofit converted",
}


def _builders() -> dict[str, Callable[[], Any]]:
    named: dict[str, Callable[[], Any]] = {"maze": maze}
    named["sudoku/hardest"] = sudoku_symmetric
    named["sudoku/6x6-symmetric"] = partial(sudoku_symmetric, 6, minutes=3.0)
    for family in REASONER_FAMILIES:
        for size in (6, 9):
            named[_name(f"sudoku/{size}x{size}", family)] = partial(sudoku, size, family)
        named[_name("maze/walls", family)] = partial(maze_walls, family)
        for task, kind in (("sudoku/extreme", "sudoku"), ("maze/hard", "maze"), ("maze/unique", "unique")):
            named[_name(task, family)] = partial(published, kind, family)
            if family in ("attractor", "trm"):
                named[_name(f"{task}-27m", family)] = partial(published, kind, family, width=WIDTHS_27M[kind])
    for family in NAMED_FAMILIES:
        named["arc" if family == "trm" else f"arc-{family}"] = partial(arc, family)
    for size_name in SIZES:
        for family in LANGUAGE_FAMILIES:
            named[_name(f"language/{size_name}", family)] = partial(_build, "language", size_name, family)
    for name, (builder, settings) in FROM_CHECKPOINT.items():
        named[name] = partial(_build, builder, **settings)
    return named


def _name(task: str, family: str) -> str:
    return task if family == "attractor" else f"{task}-{family}"


def _build(builder: str, *args: Any, **settings: Any) -> "LanguageRecipe":
    recipe: LanguageRecipe = __getattr__(builder)(*args, **settings)
    return recipe


__all__ = [
    "FROM_CHECKPOINT",
    "LANGUAGE_FAMILIES",
    "NAMED_FAMILIES",
    "REASONER_FAMILIES",
    "SIZES",
    "ArcDataConfig",
    "LanguageRecipe",
    "MazeDataConfig",
    "PuzzleRecipe",
    "Recipe",
    "RecipeSummary",
    "SudokuDataConfig",
    "arc",
    "chat",
    "fit_to_model",
    "fit_to_puzzles",
    "get",
    "language",
    "maze",
    "maze_walls",
    "names",
    "override",
    "published",
    "retrofit",
    "sudoku",
    "sudoku_symmetric",
    "summaries",
]
