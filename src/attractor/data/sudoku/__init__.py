"""Sudoku of 4, 6 or 9 digits: drawn with one solution, solved exactly, told apart up to symmetry, read, written and judged."""

from attractor.data.sudoku.draw import generate
from attractor.data.sudoku.rules import BOXES, Grid, Grids, solves
from attractor.data.sudoku.solver import check, count_solutions, solve
from attractor.data.sudoku.symmetry import augment, canonical, equivalent_pairs
from attractor.data.sudoku.text import parse, parse_all, parse_located, read, read_located, read_table, render, verdict

__all__ = [
    "BOXES",
    "Grid",
    "Grids",
    "augment",
    "canonical",
    "check",
    "count_solutions",
    "equivalent_pairs",
    "generate",
    "parse",
    "parse_all",
    "parse_located",
    "read",
    "read_located",
    "read_table",
    "render",
    "solve",
    "solves",
    "verdict",
]
