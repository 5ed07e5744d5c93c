"""Side-by-side measurements, one command each. Both sides run in one process on the same work; results go to ``results/``."""


def with_spread(mean: float, spread: float | None, digits: int) -> str:
    """Return "mean ± spread", or the mean alone where the spread is None: one seed has none."""
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
