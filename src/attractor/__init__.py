"""Attractor Models: networks that propose an answer and then refine it until it stops changing.

The ground floor is :func:`fixed_point`, a layer for any PyTorch model; on it stand the models in ``attractor.models``.
"""

from attractor.errors import (
    AttractorError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    LostRankError,
    NotConvergedError,
)
from attractor.fixed_point import FixedPoint, fixed_point
from attractor.gradient import (
    Gradient,
    Implicit,
    Neumann,
    OneStep,
    Phantom,
    Unrolled,
    jacobian_penalty,
    lipschitz_estimate,
    spectral_radius,
)
from attractor.solve import (
    Anderson,
    BestSoFar,
    Broyden,
    Outcome,
    PartialUpdate,
    Picard,
    Solution,
    Solver,
    Status,
    Steps,
    StopRule,
    Tolerance,
    Update,
    synchronized,
)

__version__ = "0.1.0"

__all__ = [
    "Anderson",
    "AttractorError",
    "BestSoFar",
    "Broyden",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "FixedPoint",
    "Gradient",
    "Implicit",
    "LostRankError",
    "Neumann",
    "NotConvergedError",
    "OneStep",
    "Outcome",
    "PartialUpdate",
    "Phantom",
    "Picard",
    "Solution",
    "Solver",
    "Status",
    "Steps",
    "StopRule",
    "Tolerance",
    "Unrolled",
    "Update",
    "fixed_point",
    "jacobian_penalty",
    "lipschitz_estimate",
    "spectral_radius",
    "synchronized",
]
