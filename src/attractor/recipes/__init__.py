"""Runs as functions that return a configuration; a variant calls one and changes a field or two."""

from collections.abc import Callable
from functools import partial

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.recipes.language import FAMILIES, SIZES, LanguageRecipe, language, retrofit, started_from
from attractor.recipes.puzzles import FAMILIES as PUZZLE_FAMILIES
from attractor.recipes.puzzles import (
    WIDTHS_27M,
    MazeDataConfig,
    PuzzleRecipe,
    SudokuDataConfig,
    fitted,
    maze,
    maze_control,
    published,
    sudoku,
)

RETROFIT = "language/retrofit"  # the one that needs a checkpoint to start from

Recipe = PuzzleRecipe | LanguageRecipe


def _named(task: str, family: str) -> str:
    return task if family == "attractor" else f"{task}-{family}"


RECIPES: dict[str, Callable[[], Recipe]] = {
    "maze": maze,
    "maze-control": lambda: maze_control(num_steps=4000),
    **{
        _named(f"sudoku/{size}x{size}", family): partial(sudoku, size, family)
        for size in (6, 9)
        for family in PUZZLE_FAMILIES
    },
    **{_named("sudoku/extreme", family): partial(published, "sudoku", family) for family in PUZZLE_FAMILIES},
    **{_named("maze/hard", family): partial(published, "maze", family) for family in PUZZLE_FAMILIES},
    **{
        _named(f"{name}-27m", family): partial(published, task, family, width=WIDTHS_27M[task])
        for name, task in (("sudoku/extreme", "sudoku"), ("maze/hard", "maze"))
        for family in ("attractor", "trm")
    },
    **{_named(f"language/{size}", family): partial(language, size, family) for size in SIZES for family in FAMILIES},
    RETROFIT: retrofit,
}


def recipe(name: str) -> Recipe:
    """Return the recipe of that name."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; {suggestion(name, RECIPES)}")
    return RECIPES[name]()


__all__ = [
    "RECIPES",
    "RETROFIT",
    "LanguageRecipe",
    "MazeDataConfig",
    "PuzzleRecipe",
    "Recipe",
    "SudokuDataConfig",
    "fitted",
    "language",
    "maze",
    "maze_control",
    "published",
    "recipe",
    "retrofit",
    "started_from",
    "sudoku",
]
