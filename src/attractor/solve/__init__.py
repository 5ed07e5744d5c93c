"""Fixed-point numerics on tensors: the one loop, the solvers, the stop rules, the solution. Knows no models."""

from attractor.solve.loop import PartialUpdate, Update, solve
from attractor.solve.solution import Outcome, Solution, Status
from attractor.solve.solvers import Anderson, BestSoFar, Broyden, Picard, Solver
from attractor.solve.stop import Steps, StopRule, Tolerance, require_resolvable
from attractor.solve.sync import is_synchronized, synchronized

__all__ = [
    "Anderson",
    "BestSoFar",
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
    "is_synchronized",
    "require_resolvable",
    "solve",
    "synchronized",
]
