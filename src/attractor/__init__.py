"""Attractor Models: networks that propose an answer and refine it until it converges.

:func:`fixed_point` is a layer for any PyTorch model; it needs only PyTorch and NumPy. :func:`train`, :func:`load`,
:func:`evaluate` and :func:`cost` work with the models in ``attractor.models``. Every name is imported when it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attractor import recipes
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
    from attractor.experiment.cost import cost
    from attractor.experiment.evaluation import evaluate
    from attractor.experiment.loading import load
    from attractor.experiment.prepare import prepare_arc, prepare_mazes, prepare_sudoku, prepare_text
    from attractor.experiment.pretrained import pretrained
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
    from attractor.root_finding import Newton, NewtonKrylov, root
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
        fused_bookkeeping,
        synchronized,
    )

__version__ = "0.1.0"

_MODULES = {  # where the names of __all__ are; all others are in ``solve``
    "errors": "AttractorError CheckpointError ConfigError DataError DivergedError LostRankError MissingExtraError "
    "NotConvergedError",
    "experiment.cost": "cost",
    "experiment.evaluation": "evaluate",
    "experiment.loading": "load",
    "experiment.prepare": "prepare_arc prepare_mazes prepare_sudoku prepare_text",
    "experiment.pretrained": "pretrained",
    "experiment.training": "train",
    "gradient": "Gradient Implicit Neumann OneStep Phantom Unrolled jacobian_penalty lipschitz_estimate spectral_radius",
    "interop": "retrofit",
    "layer": "FixedPoint fixed_point",
    "root_finding": "Newton NewtonKrylov root",
}


def __getattr__(name: str) -> Any:
    if name in ("gradient", "recipes", "solve"):
        return importlib.import_module(f"attractor.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names.split()), "solve")
    value = globals()[name] = getattr(importlib.import_module(f"attractor.{module}"), name)
    return value


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
    "Newton",
    "NewtonKrylov",
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
    "fused_bookkeeping",
    "jacobian_penalty",
    "lipschitz_estimate",
    "load",
    "prepare_arc",
    "prepare_mazes",
    "prepare_sudoku",
    "prepare_text",
    "pretrained",
    "recipes",
    "retrofit",
    "root",
    "spectral_radius",
    "synchronized",
    "train",
]
