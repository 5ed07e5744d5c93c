"""How little solving is enough: the cheapest budget whose held-out loss is close to that of the equilibrium."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attractor.errors import ConfigError, DataError
from attractor.evaluation.text import TextScore, score_text

Budget = dict[str, Any]
CANDIDATES: tuple[Budget, ...] = (
    *({"depth": n} for n in (0, 1, 2, 3, 4)),
    *({"tolerance": rtol} for rtol in (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3)),
)


@dataclass(frozen=True, kw_only=True)
class BudgetScore:
    """One budget's held-out score and its cost in floating-point operations per token."""

    budget: Budget
    score: TextScore
    flops_per_token: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """All trials in the order of their cost, the solved one, and the cheapest that is close enough to it."""

    trials: tuple[BudgetScore, ...]
    solved: BudgetScore
    chosen: BudgetScore


def calibrate(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    *,
    length: int,
    within: float = 0.005,
    candidates: Sequence[Budget] = CANDIDATES,
    batch_size: int = 8,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Find the cheapest budget whose loss is at most ``1 + within`` times that of solving to the model's own tolerance.

    Store it with ``model.store_budget(**calibration.chosen.budget)``; ``generate`` then keeps to it.

    Parameters
    ----------
    model, tokenizer, documents, length
        See :func:`attractor.evaluation.score_text`; a model that refines a proposal.
    within
        The loss that may be given up, as a share.
    candidates
        Budgets to try besides the model's own: ``{"depth": n}`` or ``{"tolerance": rtol}``.
    advance
        Called with how many budgets were tried, and of how many.
    """
    if not within > 0:
        raise ConfigError(f"calibrate(within={within!r}): give the share of loss that may be given up, above zero.")
    if not getattr(model.config, "num_attractor_layers", 0):
        raise ConfigError(
            "calibrate: this model refines nothing, so that there is nothing to choose; give an attractor."
        )

    def attempt(budget: Budget) -> BudgetScore:
        score = score_text(model, tokenizer, documents, length=length, batch_size=batch_size, **budget)
        return BudgetScore(budget=budget, score=score, flops_per_token=model.flops_per_token(length, score.evaluations))

    own = {"tolerance": model.config.tolerance}
    budgets = [own, *(budget for budget in candidates if budget != own)]
    trials: list[BudgetScore] = []
    for budget in budgets:
        trials.append(attempt(budget))
        advance(len(trials), len(budgets))
    solved = trials[0]
    if not math.isfinite(solved.score.nats):
        raise DataError("calibrate: the loss at the equilibrium is not finite, so that nothing can be close to it.")
    enough = [trial for trial in trials if trial.score.nats <= (1 + within) * solved.score.nats]
    by_cost = sorted(trials, key=lambda trial: trial.flops_per_token)
    chosen = min(enough, key=lambda trial: trial.flops_per_token)
    return Calibration(trials=tuple(by_cost), solved=solved, chosen=chosen)
