"""Windows of mazes: small solved mazes from parts of large ones."""

import numpy as np
import pytest

from attractor.data.maze import Cell, generate_walls, shortest_paths
from attractor.data.maze.paths import steps_to_goal_mod_3
from attractor.data.maze.windows import windows


@pytest.mark.parametrize("size", [5, 9, 15])
def test_a_window_is_a_solved_maze(size):
    mazes = generate_walls(32, 16, seed=0, min_path=32)
    questions, answers = windows(mazes.questions, mazes.answers, size, np.random.default_rng(0))
    assert questions.shape == (32, size, size)
    np.testing.assert_array_equal(shortest_paths(questions), answers)
    for border in (questions[:, [0, -1]], questions[:, :, [0, -1]]):
        assert (border == Cell.WALL).all()


def test_a_window_shows_a_part_of_the_path_and_all_parts_occur():
    mazes = generate_walls(1, 16, seed=0, min_path=32)
    many = np.repeat(mazes.questions, 400, axis=0), np.repeat(mazes.answers, 400, axis=0)
    _, answers = windows(*many, 8, np.random.default_rng(0))
    starts = {tuple(np.argwhere(answer == Cell.START)[0]) for answer in answers}
    lengths = (answers == Cell.PATH).sum(axis=(1, 2)) + 1
    assert len(starts) > 20
    assert lengths.min() == 1  # from the cell before G
    assert lengths.max() > 8


def test_a_shortest_path_follows_the_auxiliary_targets():
    """From S on, each next cell has one less, modulo 3, and G has 0; walls have no target."""
    mazes = generate_walls(8, 16, seed=0, min_path=32)
    targets = steps_to_goal_mod_3(mazes.questions)
    np.testing.assert_array_equal(targets[mazes.questions == Cell.WALL], -1)
    assert (targets[mazes.questions == Cell.GOAL] == 0).all()
    for target, answer in zip(targets, mazes.answers, strict=True):
        on_path = np.isin(answer, (Cell.START, Cell.PATH, Cell.GOAL))
        here, length = np.argwhere(answer == Cell.START)[0], 0
        while answer[tuple(here)] != Cell.GOAL:
            steps = [here + step for step in ((-1, 0), (1, 0), (0, -1), (0, 1))]
            (here,) = [c for c in steps if on_path[tuple(c)] and target[tuple(c)] == (target[tuple(here)] - 1) % 3]
            length += 1
        assert length == on_path.sum() - 1
