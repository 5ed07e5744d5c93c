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
    contraction,
    jacobian_penalty,
    spectral_radius,
)
from attractor.interop.auto_classes import register_models
from attractor.solve import (
    Anderson,
    Best,
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
    together,
)

__version__ = "0.1.0"

register_models()  # AutoModelForCausalLM and pipelines find our language models

__all__ = [
    "Anderson",
    "AttractorError",
    "Best",
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
    "contraction",
    "fixed_point",
    "jacobian_penalty",
    "spectral_radius",
    "together",
]
