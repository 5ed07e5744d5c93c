"""Sudoku with 4, 6 or 9 digits: generate puzzles with one solution, solve, compare, read, write and check them."""

from attractor.data.sudoku.generate import generate
from attractor.data.sudoku.puzzle import SUDOKU, Sudoku
from attractor.data.sudoku.rules import BOXES, Grid, Grids, solves
from attractor.data.sudoku.solver import check, count_solutions, deduce, solve
from attractor.data.sudoku.symmetry import augment, canonical, equivalent_pairs
from attractor.data.sudoku.text import parse, parse_all, render, verdict

__all__ = [
    "BOXES",
    "SUDOKU",
    "Grid",
    "Grids",
    "Sudoku",
    "augment",
    "canonical",
    "check",
    "count_solutions",
    "deduce",
    "equivalent_pairs",
    "generate",
    "parse",
    "parse_all",
    "render",
    "solve",
    "solves",
    "verdict",
]
