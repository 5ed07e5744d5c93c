"""Learning-rate schedules as functions of progress, so that a run may be bounded by steps or by time."""


def trapezoid(progress: float, *, warmup_fraction: float, cooldown_fraction: float) -> float:
    """Return the factor on the learning rate at ``progress`` in [0, 1].

    It rises linearly from 0 to 1 in the first ``warmup_fraction`` of the run, stays at 1, and falls linearly to 0 in
    the last ``cooldown_fraction``.
    """
    rise = progress / warmup_fraction if progress < warmup_fraction else 1.0
    fall = (1 - progress) / cooldown_fraction if progress > 1 - cooldown_fraction else 1.0
    return max(0.0, min(rise, fall))
