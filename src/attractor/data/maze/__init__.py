"""Mazes: generate, solve, read, write and check.

A maze is the smallest task in which information must travel: a small part of the grid does not show which cells lie
between S and G. A model that learns on small mazes can be tested on larger ones with more iterations (Schwarzschild et
al. 2021, arXiv:2108.06011). A question is a grid of walls, floor, start and goal; its answer is the same grid with a
shortest path marked, in the five characters of Maze-Hard (Wang et al. 2025, arXiv:2506.21734). Everything is NumPy over
complete batches, and a seed gives the same mazes on every platform.
"""

from attractor.data.maze.generate import generate, generate_mixture, generate_unique, generate_walls
from attractor.data.maze.paths import check, shortest_paths, valid_and_shortest, verdict
from attractor.data.maze.puzzle import MAZE, Maze
from attractor.data.maze.rules import ALPHABET, Cell, Grid, Grids
from attractor.data.maze.symmetry import augment, fingerprints
from attractor.data.maze.text import parse, parse_all, render, write

__all__ = [
    "ALPHABET",
    "MAZE",
    "Cell",
    "Grid",
    "Grids",
    "Maze",
    "augment",
    "check",
    "fingerprints",
    "generate",
    "generate_mixture",
    "generate_unique",
    "generate_walls",
    "parse",
    "parse_all",
    "render",
    "shortest_paths",
    "valid_and_shortest",
    "verdict",
    "write",
]
