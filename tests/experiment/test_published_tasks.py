"""The recipes of published tasks generate puzzles by the published definitions."""

from dataclasses import replace

import pytest

from attractor import recipes
from attractor.data.maze import Cell
from attractor.experiment.puzzles import training_puzzles


@pytest.mark.parametrize(("name", "size", "steps"), [("maze/hard", 30, (111, 900)), ("maze/unique", 29, (100, 140))])
def test_recipes_generate_published_mazes_by_their_definition(name: str, size: int, steps: tuple[int, int]) -> None:
    """Maze-Hard: 30 to 50 % walls, shortest paths above 110, loops. Maze-Unique: one path, of 100 to 140 steps."""
    recipe = recipes.get(name)
    found = training_puzzles(replace(recipe, data=replace(recipe.data, num_puzzles=6)))
    assert found.questions.shape == (6, size, size)
    num_steps = (found.answers == Cell.PATH).sum(axis=(1, 2)) + 1
    assert ((num_steps >= steps[0]) & (num_steps <= steps[1])).all()
    walls = (found.questions == Cell.WALL).mean(axis=(1, 2))
    junctions = ((size - 1) // 2) ** 2
    if name == "maze/hard":
        assert ((walls > 0.3) & (walls < 0.5)).all()
    else:  # a tree has one edge less than junctions
        assert ((found.questions != Cell.WALL).sum(axis=(1, 2)) == 2 * junctions - 1).all()
    assert not recipe.supervision.augment
