"""Learning-rate schedules as functions of progress, so that a run may be bounded by steps or by the clock."""


def trapezoid(progress: float, *, warmup: float, decay: float) -> float:
    """Return the factor on the learning rate at ``progress`` in [0, 1].

    Rises linearly over the first ``warmup`` share of the run, stays at 1, and falls linearly to 0 over the last ``decay`` share.
    """
    rise = progress / warmup if progress < warmup else 1.0
    fall = (1 - progress) / decay if progress > 1 - decay else 1.0
    return max(0.0, min(rise, fall))
