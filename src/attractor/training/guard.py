"""Detect divergence and decide what to do about it. The loop carries the decision out.

A step is bad if its loss or gradient norm is not finite, or far above the values of recent good steps. A run drifts if,
in several reports in a row, most equations do not converge or the update does not contract.
"""

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum
from math import isfinite, isnan, nan
from typing import Any

import torch
from torch import Tensor

from attractor.config import config_class, require_positive, require_whole, suggestion
from attractor.errors import ConfigError

POLICIES = ("skip", "rollback", "stop")
MIN_HISTORY = 20  # good steps before a value can be called a spike
# Metrics that show a drift: the smallest value that counts, and the words for it.
DRIFTS = {
    "unconverged": (0.5, "most equations end above tolerance"),
    "spectral_radius": (1.0, "the update does not contract (its spectral radius is at least 1)"),
}


@config_class
class GuardConfig:
    """What counts as divergence, and what happens then.

    Attributes
    ----------
    policy
        ``"skip"`` skips bad steps, logs drifts, and stops after more than ``max_skipped`` bad steps in a row.
        ``"rollback"`` skips bad steps too; after too many of them, or at a drift, it restores the weights of the last
        checkpoint and continues with new data, at most ``max_rollbacks`` times. ``"stop"`` stops at the first bad step
        or drift.
    max_skipped
        See ``policy``.
    max_rollbacks
        See ``policy``.
    loss_spike
        A loss is bad if it exceeds the median of the last ``window`` good losses by this many standard deviations plus
        a tenth of the median. None: only if it is not finite.
    window
        How many of the last good losses and gradient norms are compared.
    gradient_spike
        A gradient norm is bad if it exceeds this many times the median norm. None: only if it is not finite.
    patience
        Number of reports in a row that make a drift.
    rollback_rate
        Factor on the learning rate at each rollback.
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
        require_whole(self, MIN_HISTORY, "window")
        require_positive(self, "rollback_rate")
        require_positive(self, *(n for n in ("loss_spike", "gradient_spike") if getattr(self, n) is not None))


class Action(Enum):
    """What the loop does next."""

    CONTINUE = "continue"
    WARN = "warn"  # log the reason and continue
    SKIP = "skip"  # skip the optimiser step
    ROLLBACK = "rollback"  # restore the last checkpoint
    STOP = "stop"  # raise DivergedError


@dataclass(frozen=True)
class Decision:
    """An action and the reason for it. The reason is empty for ``CONTINUE``."""

    action: Action = Action.CONTINUE
    reason: str = ""


@dataclass
class GuardCounters:
    """Numbers of bad steps in a row, skipped steps and rollbacks, and the rollbacks' factor on the learning rate."""

    num_bad: int = 0
    skipped: int = 0
    rollbacks: int = 0
    lr_factor: float = 1.0


class Guard:
    """Check every step and every report of a run. All ranks see the same numbers and so decide the same."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self.counters = GuardCounters()
        self._problem: str | None = None  # of the last step
        self._forget_history()

    def check_step(self, loss: float, grad_norm: float) -> Decision:
        """Return ``SKIP`` for a bad step, else ``CONTINUE``."""
        self._problem = self._find_problem(loss, grad_norm)
        if self._problem is not None:
            self.counters.num_bad += 1
            self.counters.skipped += 1
            return Decision(Action.SKIP, self._problem)
        self.counters.num_bad = 0
        self._losses.append(loss)
        self._grad_norms.append(grad_norm)
        return Decision()

    def check_run(self, metrics: Mapping[str, float]) -> Decision:
        """Return how the run goes on after a step: ``CONTINUE``, ``WARN``, ``ROLLBACK`` or ``STOP``.

        ``metrics`` are those of this step's report, or empty if it has none.
        """
        drift, policy, num_bad = self._find_drift(metrics), self._config.policy, self.counters.num_bad
        if num_bad and (policy == "stop" or num_bad > self._config.max_skipped):
            return self._rollback_or_stop(f"{self._problem} (bad steps in a row: {num_bad})")
        if drift is None:
            return Decision()
        return Decision(Action.WARN, drift) if policy == "skip" else self._rollback_or_stop(drift)

    @property
    def in_trouble(self) -> bool:
        """Whether a checkpoint written now would be a bad one to roll back to."""
        return self.counters.num_bad > 0 or (self._config.policy != "skip" and any(self._drifting.values()))

    def record_rollback(self) -> None:
        """Count a rollback, lower the learning rate, and forget the steps before."""
        self.counters.rollbacks += 1
        self.counters.lr_factor *= self._config.rollback_rate
        self.counters.num_bad = 0
        self._forget_history()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the recent good steps and the drifts as tensors."""
        steps = torch.tensor([list(self._losses), list(self._grad_norms)], dtype=torch.float64)
        return {"steps": steps, "drifting": torch.tensor(list(self._drifting.values()))}

    def scalars(self) -> dict[str, float]:
        """Return the counters as plain numbers."""
        return asdict(self.counters)

    def load_state_dict(self, state: Mapping[str, Tensor], scalars: Mapping[str, float]) -> None:
        """Restore what :meth:`state_dict` and :meth:`scalars` returned."""
        counters: dict[str, Any] = {field.name: scalars[field.name] for field in fields(GuardCounters)}
        self.counters = GuardCounters(**counters)
        self._forget_history()
        losses, grad_norms = state["steps"].tolist()
        self._losses.extend(losses)
        self._grad_norms.extend(grad_norms)
        self._drifting = dict(zip(DRIFTS, state["drifting"].tolist(), strict=True))

    def _forget_history(self) -> None:
        self._losses: deque[float] = deque(maxlen=self._config.window)
        self._grad_norms: deque[float] = deque(maxlen=self._config.window)
        self._drifting = dict.fromkeys(DRIFTS, 0)  # reports in a row

    def _find_problem(self, loss: float, grad_norm: float) -> str | None:
        """Return what is wrong with a step, or None."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not isfinite(value):
                return f"the {name} is {value:g}"
        if len(self._losses) < MIN_HISTORY:
            return None
        if (spike := self._config.loss_spike) is not None:
            median = statistics.median(self._losses)
            # 1.4826 times the median absolute deviation estimates the standard deviation of normal numbers.
            deviation = 1.4826 * statistics.median(abs(x - median) for x in self._losses)
            if loss > median + spike * deviation + 0.1 * abs(median):
                return f"the loss jumps to {loss:.4g} from a median of {median:.4g}"
        if (spike := self._config.gradient_spike) is not None:
            median = statistics.median(self._grad_norms)
            if grad_norm > spike * median:
                return f"the gradient norm jumps to {grad_norm:.4g} from a median of {median:.4g}"
        return None

    def _find_drift(self, metrics: Mapping[str, float]) -> str | None:
        """Return how the run drifts at every ``patience``-th report in a row that shows it, else None."""
        found = None
        for name, (limit, words) in DRIFTS.items():
            if isnan(value := metrics.get(name, nan)):
                continue  # not measured
            self._drifting[name] = self._drifting[name] + 1 if value >= limit else 0
            if self._drifting[name] and self._drifting[name] % self._config.patience == 0:
                found = found or f"{words}, {self._drifting[name]} reports in a row"
        return found

    def _rollback_or_stop(self, reason: str) -> Decision:
        if self._config.policy != "rollback":
            advice = (
                "start again with a lower train.optimizer.lr (or muon_lr) or in fp32, "
                "or resume with train.guard.policy=rollback"
            )
            return Decision(Action.STOP, f"{reason}; {advice}.")
        if self.counters.rollbacks == self._config.max_rollbacks:
            return Decision(Action.STOP, f"{reason}; the limit max_rollbacks={self._config.max_rollbacks} is reached.")
        return Decision(Action.ROLLBACK, reason)
