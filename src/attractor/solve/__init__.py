"""Fixed-point numerics on tensors: the one loop, the solvers, the stop rules, the solution. Knows no models."""

from attractor.solve.anderson import Anderson
from attractor.solve.broyden import Broyden
from attractor.solve.fusion import fused_bookkeeping
from attractor.solve.loop import solve
from attractor.solve.randomness import checkpoint_contexts
from attractor.solve.solution import Outcome, Solution, Status
from attractor.solve.solver import BestSoFar, Picard, Solver
from attractor.solve.stop import Steps, StopRule, Tolerance, require_resolvable
from attractor.solve.sync import is_synchronized, synchronized
from attractor.solve.update import PartialUpdate, Update

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
    "checkpoint_contexts",
    "fused_bookkeeping",
    "is_synchronized",
    "require_resolvable",
    "solve",
    "synchronized",
]
