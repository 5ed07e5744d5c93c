"""Divergence: how it is seen, and in which words the log tells of it. What is done about it, the loop does.

A step is bad when its loss or gradient is not finite, or leaves what the last good steps were like. A run is drifting when, report
after report, most equations stay unsolved or the map that is solved does not contract.
"""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan

import torch
from torch import Tensor

from attractor.config import require_positive, require_whole, suggestion
from attractor.errors import ConfigError

POLICIES = ("skip", "rollback", "stop")
LEAST = 20  # good steps before anything is called a spike
# What a drift says of itself, by the figure that shows it and the least value that is one.
DRIFTS = {
    "unconverged": (0.5, "most equations end above tolerance"),
    "spectral_radius": (1.0, "the map that is solved does not contract (spectral radius from 1 up)"),
}


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a run is taken to diverge, and what is done about it.

    Attributes
    ----------
    policy
        ``"skip"`` leaves bad steps out, tells of drifts, and stops after ``max_skipped`` bad steps in a row. ``"rollback"`` then,
        and at a drift, goes back to the last checkpoint's weights and on with the data that come next, at ``rollback_rate`` times
        the learning rate, ``max_rollbacks`` times at most. ``"stop"`` stops at the first bad step or drift.
    max_skipped
        Bad steps in a row that are borne.
    loss_spike
        A loss is bad above the median of the last ``window`` good ones by so many deviations (and a tenth of the median). None:
        only when it is not finite.
    gradient_spike
        A gradient is bad above so many times the median norm. None: only when it is not finite.
    patience
        Reports in a row that make a drift.
    """

    policy: str = "skip"
    max_skipped: int = 20
    loss_spike: float | None = None
    gradient_spike: float | None = None
    window: int = 100
    patience: int = 10
    max_rollbacks: int = 3
    rollback_rate: float = 0.5

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"GuardConfig(policy={self.policy!r}): {suggestion(self.policy, POLICIES)}")
        require_whole(self, 0, "max_skipped", "max_rollbacks")
        require_whole(self, 1, "patience")
        require_whole(self, LEAST, "window")
        require_positive(self, "rollback_rate")
        require_positive(self, *(n for n in ("loss_spike", "gradient_spike") if getattr(self, n) is not None))


class Guard:
    """Looks at every step and every report of a run."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self._drifting = dict.fromkeys(DRIFTS, 0)

    def judge(self, loss: float, norm: float) -> str | None:
        """Return what is wrong with a step's loss and gradient norm; None, and remember them, where nothing is."""
        for name, value in (("loss", loss), ("gradient", norm)):
            if not abs(value) < float("inf"):
                return f"the {name} is {value:g}"
        if len(self._losses) >= LEAST:
            if (times := self._config.loss_spike) is not None:
                middle = statistics.median(self._losses)
                # Of normal numbers, one deviation.
                spread = 1.4826 * statistics.median(abs(x - middle) for x in self._losses)
                if loss > middle + times * spread + 0.1 * abs(middle):
                    return f"the loss jumps to {loss:.4g} from a median of {middle:.4g}"
            if (times := self._config.gradient_spike) is not None:
                middle = statistics.median(self._norms)
                if norm > times * middle:
                    return f"the gradient's norm jumps to {norm:.4g} from a median of {middle:.4g}"
        self._losses.append(loss)
        self._norms.append(norm)
        return None

    def look(self, figures: Mapping[str, float]) -> str | None:
        """Return how a run drifts, at the report that makes it a drift and every ``patience`` reports from then on."""
        found = None
        for name, (least, words) in DRIFTS.items():
            if isnan(value := figures.get(name, nan)):
                continue  # nothing was measured
            self._drifting[name] = self._drifting[name] + 1 if value >= least else 0
            if self._drifting[name] and self._drifting[name] % self._config.patience == 0:
                found = found or f"{words}, {self._drifting[name]} reports in a row"
        return found

    @property
    def is_drifting(self) -> bool:
        """Whether a drift, which this run's policy acts on, may be under way."""
        return self._config.policy != "skip" and any(self._drifting.values())

    def forget(self) -> None:
        """Begin anew, as after a rollback."""
        self._losses.clear()
        self._norms.clear()
        self._drifting = dict.fromkeys(DRIFTS, 0)

    def state_dict(self) -> dict[str, Tensor]:
        steps = torch.tensor([list(self._losses), list(self._norms)], dtype=torch.float64)
        return {"steps": steps, "drifting": torch.tensor(list(self._drifting.values()))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.forget()
        losses, norms = state["steps"].tolist()
        self._losses.extend(losses)
        self._norms.extend(norms)
        self._drifting = dict(zip(DRIFTS, state["drifting"].tolist(), strict=True))
