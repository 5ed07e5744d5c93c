"""Fixed-point numerics on tensors: the one loop, the solvers, the stop rules, the solution. Knows no models."""

from attractor.solve.loop import PartialUpdate, Update, solve
from attractor.solve.solution import Outcome, Solution, Status
from attractor.solve.solvers import Anderson, Best, Broyden, Picard, Solver
from attractor.solve.stop import Steps, StopRule, Tolerance, require_resolvable

__all__ = [
    "Anderson",
    "Best",
    "Broyden",
    "Outcome",
    "PartialUpdate",
    "Picard",
    "Solution",
    "Solver",
    "Status",
    "Steps",
    "StopRule",
    "Tolerance",
    "Update",
    "require_resolvable",
    "solve",
]
