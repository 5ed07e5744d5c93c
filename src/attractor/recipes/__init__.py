"""Runs as functions that return a configuration; a variant calls one and changes a field or two."""

from collections.abc import Callable

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.recipes.mazes import MazeDataConfig, MazeRecipe, maze, maze_control

RECIPES: dict[str, Callable[[], MazeRecipe]] = {"maze": maze, "maze-control": lambda: maze_control(num_steps=4000)}


def recipe(name: str) -> MazeRecipe:
    """Return the recipe of that name."""
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}; {suggestion(name, RECIPES)}")
    return RECIPES[name]()


__all__ = ["RECIPES", "MazeDataConfig", "MazeRecipe", "maze", "maze_control", "recipe"]
