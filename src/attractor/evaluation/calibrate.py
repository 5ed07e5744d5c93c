"""Choose the cheapest evaluation budget whose held-out loss is close to the lowest."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attractor.errors import ConfigError, DataError
from attractor.evaluation.text import TextScore, score_text
from attractor.models.budget import reachable_tolerance

Budget = dict[str, Any]
CANDIDATES: tuple[Budget, ...] = (
    *({"depth": n} for n in (0, 1, 2, 3, 4)),
    *({"tolerance": rtol} for rtol in (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3)),
)


@dataclass(frozen=True, kw_only=True)
class BudgetScore:
    """The held-out score of one budget, and its floating-point operations per token."""

    budget: Budget
    score: TextScore
    flops_per_token: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """All budgets in order of cost, the one with the lowest loss (``reference``), and the ``chosen`` one."""

    budgets: tuple[BudgetScore, ...]
    reference: BudgetScore
    chosen: BudgetScore


def calibrate(
    model: Any,
    tokenizer: Any,
    documents: Sequence[str],
    *,
    length: int,
    max_loss_increase: float = 0.005,
    candidates: Sequence[Budget] = CANDIDATES,
    batch_size: int = 8,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Find the cheapest budget whose loss is at most ``1 + max_loss_increase`` times the lowest loss of all budgets.

    ``model.config.budget = calibration.chosen.budget`` makes it the model's default.

    Parameters
    ----------
    model, tokenizer, documents, length, batch_size
        See :func:`attractor.evaluation.score_text`. The model must have attractor layers.
    candidates
        Budgets to try in addition to the model's own tolerance: ``{"depth": n}`` or ``{"tolerance": rtol}``. Tolerances
        that the model's dtype cannot reach are left out.
    advance
        Called as ``advance(done, total)`` with numbers of budgets.

    Raises
    ------
    ConfigError
        For a model without attractor layers, or ``max_loss_increase`` that is not positive.
    DataError
        When there is no text, or no loss is finite.
    """
    if not max_loss_increase > 0:
        raise ConfigError(f"calibrate(max_loss_increase={max_loss_increase!r}): give a relative increase above zero.")
    if not getattr(model.config, "num_attractor_layers", 0):
        raise ConfigError("calibrate: this model has no attractor layers, so there is no budget to choose.")

    own, least = {"tolerance": model.model.default_tolerance}, reachable_tolerance(model.dtype)
    others = (budget for budget in candidates if budget != own and budget.get("tolerance", 1) >= least)
    budgets, scores = [own, *others], []
    for budget in budgets:
        score = score_text(model, tokenizer, documents, length=length, batch_size=batch_size, **budget)
        flops = model.flops_per_token(length, score.evaluations)
        scores.append(BudgetScore(budget=budget, score=score, flops_per_token=flops))
        advance(len(scores), len(budgets))
    finite = [each for each in scores if math.isfinite(each.score.nats)]
    if not finite:
        raise DataError("calibrate: the loss is not finite with any budget; train the model first.")
    reference = min(finite, key=lambda each: each.score.nats)
    by_cost = sorted(scores, key=lambda each: each.flops_per_token)
    limit = (1 + max_loss_increase) * reference.score.nats
    chosen = next(each for each in by_cost if each.score.nats <= limit)
    return Calibration(budgets=tuple(by_cost), reference=reference, chosen=chosen)
