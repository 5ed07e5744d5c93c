"""Data: puzzles of every kind, and text. This package knows no models."""

from attractor.data.arc import ARC
from attractor.data.maze import MAZE
from attractor.data.puzzle import PUZZLES, LocatedGrid, Puzzle, PuzzleSet, Verdict, find_puzzle
from attractor.data.sudoku import SUDOKU

__all__ = ["ARC", "MAZE", "PUZZLES", "SUDOKU", "LocatedGrid", "Puzzle", "PuzzleSet", "Verdict", "find_puzzle"]
