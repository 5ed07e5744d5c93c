"""Fixed-point numerics on tensors: the one loop, the solvers, the stop rules, the solution. Knows no models."""

from attractor.solve.loop import PartialUpdate, Update, solve
from attractor.solve.solution import Outcome, Solution, Status
from attractor.solve.solvers import Anderson, Best, Broyden, Picard, Solver
from attractor.solve.stop import Steps, StopRule, Tolerance, require_resolvable
from attractor.solve.together import is_together, together

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
    "is_together",
    "require_resolvable",
    "solve",
    "together",
]
