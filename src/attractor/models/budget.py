"""The three ways to say how much a solve may cost, shared by language models and reasoners."""

from attractor.errors import ConfigError
from attractor.solve import Steps, StopRule, Tolerance


def stop_rule(
    depth: int | None = None,
    tolerance: float | None = None,
    max_evaluations: int | None = None,
    *,
    default: Tolerance,
) -> StopRule | None:
    """Return the stop rule for a budget; ``None`` where none of the three is given.

    Parameters
    ----------
    depth
        Make exactly so many evaluations.
    tolerance, max_evaluations
        Solve to this relative residual, with at most so many evaluations; what is not given is taken from ``default``.

    Raises
    ------
    ConfigError
        When ``depth`` is given together with one of the others.
    """
    if depth is not None:
        if tolerance is not None or max_evaluations is not None:
            raise ConfigError("give depth, or tolerance and max_evaluations, not both.")
        return Steps(depth)
    if tolerance is None and max_evaluations is None:
        return None
    most = default.max_evaluations if max_evaluations is None else max_evaluations
    return Tolerance(
        rtol=default.rtol if tolerance is None else tolerance,
        max_evaluations=most,
        min_evaluations=min(default.min_evaluations, most),
        patience=default.patience,
    )
