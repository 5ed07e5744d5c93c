"""The three ways to say how much a solve may cost, shared by language models and reasoners."""

import torch

from attractor.errors import ConfigError
from attractor.solve import Steps, StopRule, Tolerance

BUDGET = ("depth", "tolerance", "max_evaluations")


def stop_rule(
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    *,
    default: Tolerance,
) -> StopRule | None:
    """Return the stop rule for a budget; None if none of the three is given.

    ``depth`` makes exactly that many evaluations. ``tolerance`` and ``max_evaluations`` solve to that relative residual
    with at most that many; ``default`` supplies the other one. Raises ConfigError if both ways are given.
    """
    if depth is not None:
        if tolerance is not None or max_evaluations is not None:
            raise ConfigError("give depth, or tolerance and max_evaluations, not both.")
        return Steps(depth)
    if tolerance is None and max_evaluations is None:
        return None
    limit = default.max_evaluations if max_evaluations is None else max_evaluations
    return Tolerance(
        rtol=default.rtol if tolerance is None else tolerance,
        max_evaluations=limit,
        min_evaluations=min(default.min_evaluations, limit),
        patience=default.patience,
    )


def reachable_tolerance(dtype: torch.dtype) -> float:
    """Return the smallest tolerance that a solve in ``dtype`` reaches: rounding keeps residuals from falling below it."""
    return 2 * torch.finfo(dtype).eps
