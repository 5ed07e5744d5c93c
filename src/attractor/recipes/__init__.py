"""Runs as functions that return a configuration; a variant calls one and changes a field or two."""

from collections.abc import Callable
from functools import partial

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.recipes.language import FAMILIES, SIZES, LanguageRecipe, language, retrofit, started_from
from attractor.recipes.puzzles import MazeDataConfig, PuzzleRecipe, SudokuDataConfig, maze, maze_control, sudoku

RETROFIT = "language/retrofit"  # the one that needs a checkpoint to start from

Recipe = PuzzleRecipe | LanguageRecipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "maze": maze,
    "maze-control": lambda: maze_control(num_steps=4000),
    "sudoku/6x6": partial(sudoku, 6, minutes=6, width=128, clues=10),
    "sudoku/9x9": partial(sudoku, 9, minutes=60, width=192, clues=None),
    **{
        f"language/{size}" + (f"-{family}" if family != "attractor" else ""): partial(language, size, family)
        for size in SIZES
        for family in FAMILIES
    },
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
    "language",
    "maze",
    "maze_control",
    "recipe",
    "retrofit",
    "started_from",
    "sudoku",
]
