"""When to stop: a tolerance that every equation must meet by itself, or a fixed number of evaluations."""

from dataclasses import dataclass

import torch

from attractor.config import require_positive, require_whole
from attractor.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Iterate until every equation's own residual ``‖update(y) − y‖ / ‖y‖`` is below ``rtol``.

    Parameters
    ----------
    rtol
        The relative residual below which an equation counts as solved. Positive.
    max_evaluations
        The most calls of ``update`` for any equation. Equations still open then keep their last accepted
        iterate, so that the reported residual belongs to the returned value.
    min_evaluations
        No equation is judged before this many calls.
    check_every
        The host looks at the residuals only every so many calls. This never changes a final value: equations settle
        on the device, and looking rarely only means that a few calls may be made for nothing (with ``fraction``, that
        the others come nearer).
    fraction
        Below 1, the whole solve ends as soon as this share of all equations is below ``rtol``, verified or not, or has given up.
        Meant for training, where a slow tail would set the cost. It is the one rule that looks across
        equations and rows: with it, an answer may depend on its neighbours.
    patience
        An equation stagnates when, in this many calls, neither it nor anything it may depend on has lowered its
        best residual by 10 %; it is then left as it is and named in the outcome. The usual cause is the
        rounding floor of a bf16 update. ``None`` never gives up: right where information travels far before
        the residual can fall, as across a large maze.
    """

    rtol: float = 1e-4
    max_evaluations: int = 64
    min_evaluations: int = 1
    check_every: int = 1
    min_converged_fraction: float = 1.0
    patience: int | None = 16

    def __post_init__(self) -> None:
        require_positive(self, "rtol", "min_converged_fraction")
        require_whole(self, 1, "max_evaluations", "min_evaluations", "check_every")
        if self.patience is not None:
            require_whole(self, 1, "patience")
        if self.min_converged_fraction > 1:
            raise ConfigError(f"Tolerance(min_converged_fraction={self.min_converged_fraction!r}): the share must lie in (0, 1].")
        if self.min_evaluations > self.max_evaluations:
            raise ConfigError(
                f"Tolerance(min_evaluations={self.min_evaluations}, max_evaluations={self.max_evaluations}): "
                "the least must not exceed the most."
            )


def require_resolvable(tolerance: float | None, dtype: torch.dtype) -> None:
    """Refuse a tolerance that is below the relative precision of ``dtype``, which no residual can be told to meet."""
    if tolerance is not None and tolerance < torch.finfo(dtype).eps:
        raise ConfigError(
            f"tolerance={tolerance:g} is below what {str(dtype).removeprefix('torch.')} resolves ({torch.finfo(dtype).eps:.1e}); "
            "give a larger one."
        )


@dataclass(frozen=True)
class Steps:
    """Make exactly ``n`` calls of ``update`` and ``n`` steps, and never look at the residual on the host.

    The returned value is one step past the last point at which the residual was measured; with
    ``Picard()`` it is exactly ``update`` applied ``n`` times. ``Steps(0)`` returns ``y0``.
    """

    n: int

    def __post_init__(self) -> None:
        require_whole(self, 0, "n")

    @property
    def max_evaluations(self) -> int:
        return self.n


StopRule = Tolerance | Steps
