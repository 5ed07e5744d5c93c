"""ARC-AGI: tasks of a few pairs of grids, each of which shows the same rule (Chollet 2019, arXiv:1911.01547).

As for TRM and HRM, a task is a puzzle name with a trained embedding: the pairs that demonstrate a task are training
puzzles of that name, and its test inputs are test puzzles. A grid of up to 30 × 30 colours lies in a square of 30 × 30
cells: ``PAD`` around it, ``EOS`` right of it and below it and a colour ``c`` as ``c + 2``.
"""

from attractor.data.arc.grids import EOS, PAD, SIDE, Transform, read_grid, to_cells
from attractor.data.arc.puzzle import ARC, Arc, move_pairs
from attractor.data.arc.tasks import BLANK, Name, Task, make_splits, read_tasks

__all__ = [
    "ARC",
    "BLANK",
    "EOS",
    "PAD",
    "SIDE",
    "Arc",
    "Name",
    "Task",
    "Transform",
    "make_splits",
    "move_pairs",
    "read_grid",
    "read_tasks",
    "to_cells",
]
