"""Mazes: drawn, read, written, verified."""

from attractor.data.maze.maze import *  # noqa: F403
