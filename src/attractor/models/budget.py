"""The three ways to say how much a solve may cost, shared by language models and reasoners."""

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

    Parameters
    ----------
    depth
        Make exactly this many evaluations.
    tolerance, max_evaluations
        Solve to this relative residual, with at most this many evaluations. ``default`` supplies the one that is not
        given.

    Raises
    ------
    ConfigError
        When ``depth`` is given with one of the others.
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
