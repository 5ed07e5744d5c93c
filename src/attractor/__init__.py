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

if TYPE_CHECKING:
    from attractor import recipes
    from attractor.experiment.cost import cost
    from attractor.experiment.evaluation import evaluate
    from attractor.experiment.loading import load
    from attractor.experiment.prepare import prepare_mazes, prepare_sudoku, prepare_text
    from attractor.experiment.training import train
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
    from attractor.interop import retrofit
    from attractor.layer import FixedPoint, fixed_point
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

_MODULES = {  # the module of each name that needs more than PyTorch and NumPy
    "cost": "attractor.experiment.cost",
    "evaluate": "attractor.experiment.evaluation",
    "load": "attractor.experiment.loading",
    "prepare_mazes": "attractor.experiment.prepare",
    "prepare_sudoku": "attractor.experiment.prepare",
    "prepare_text": "attractor.experiment.prepare",
    "retrofit": "attractor.interop",
    "train": "attractor.experiment.training",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used, so that the command line answers before PyTorch is loaded."""
    if name in ("gradient", "recipes", "solve"):
        return importlib.import_module(f"attractor.{name}")
    layer = ("attractor.layer", "attractor.gradient", "attractor.solve")
    for module in ([_MODULES[name]] if name in _MODULES else layer) if name in __all__ else ():
        if (found := getattr(importlib.import_module(module), name, None)) is not None:
            return globals().setdefault(name, found)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    "prepare_mazes",
    "prepare_sudoku",
    "prepare_text",
    "recipes",
    "retrofit",
    "spectral_radius",
    "synchronized",
    "train",
]
