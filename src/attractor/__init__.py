"""Attractor Models: networks that propose an answer and refine it until it converges.

:func:`fixed_point` is a layer for any PyTorch model; it needs only PyTorch and NumPy. :func:`train`, :func:`load`,
:func:`evaluate` and :func:`cost` work with the models in ``attractor.models``; they and ``attractor.recipes`` are
imported when they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from attractor.errors import (
    AttractorError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    LostRankError,
    MissingExtraError,
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

if TYPE_CHECKING:
    from attractor import recipes
    from attractor.experiment.cost import cost
    from attractor.experiment.evaluation import evaluate
    from attractor.experiment.loading import load
    from attractor.experiment.training import train
    from attractor.interop import retrofit

__version__ = "0.1.0"

_LAZY = {
    "cost": ("attractor.experiment.cost", "cost"),
    "evaluate": ("attractor.experiment.evaluation", "evaluate"),
    "load": ("attractor.experiment.loading", "load"),
    "recipes": ("attractor.recipes", None),
    "retrofit": ("attractor.interop", "retrofit"),
    "train": ("attractor.experiment.training", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a name that needs more than PyTorch and NumPy when it is used."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = importlib.import_module(module)
    return value if attribute is None else getattr(value, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
    "MissingExtraError",
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
    "cost",
    "evaluate",
    "fixed_point",
    "jacobian_penalty",
    "lipschitz_estimate",
    "load",
    "recipes",
    "retrofit",
    "spectral_radius",
    "synchronized",
    "train",
]
