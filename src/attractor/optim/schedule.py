"""Learning-rate schedules as functions of progress, so that a run may be bounded by steps or by the clock."""


def trapezoid(progress: float, *, warmup_fraction: float, cooldown_fraction: float) -> float:
    """Return the factor on the learning rate at ``progress`` in [0, 1].

    Rises linearly over the first ``warmup`` share of the run, stays at 1, and falls linearly to 0 over the last ``cooldown_fraction`` share.
    """
    rise = progress / warmup_fraction if progress < warmup_fraction else 1.0
    fall = (1 - progress) / cooldown_fraction if progress > 1 - cooldown_fraction else 1.0
    return max(0.0, min(rise, fall))
