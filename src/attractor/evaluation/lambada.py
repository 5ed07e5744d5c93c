"""LAMBADA: predict the last word of a passage. Source: arXiv:1606.06031."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attractor.evaluation.bundle import find_task
from attractor.evaluation.core import score_items
from attractor.evaluation.text import perplexity


@dataclass(frozen=True, kw_only=True)
class LambadaScore:
    """Prediction of the last word in ``num_items`` of ``num_all`` passages.

    ``log_likelihood`` is the mean per word in nats. ``accuracy`` is the share of words that greedy decoding gives exactly.
    ``num_cut`` passages exceeded the model's positions and lost their beginnings.
    """

    num_items: int
    num_all: int
    num_cut: int
    log_likelihood: float
    accuracy: float

    @property
    def perplexity(self) -> float:
        """Perplexity per word."""
        return perplexity(-self.log_likelihood)


def lambada(
    model: Any,
    tokenizer: Any,
    bundle: Path,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    advance: Callable[[int, int], None] = lambda done, total: None,
    **budget: float | None,
) -> LambadaScore:
    """Evaluate a model on ``lambada_openai`` of ``bundle``; arguments as in :func:`attractor.evaluation.evaluate_task`."""
    task = find_task(bundle, "lambada_openai")
    found = score_items(model, tokenizer, task, limit=limit, batch_size=batch_size, advance=advance, **budget)
    words = [word for (word,) in found.scores]
    return LambadaScore(
        num_items=len(words),
        num_all=found.num_all,
        num_cut=found.num_cut,
        log_likelihood=math.fsum(word.log_likelihood for word in words) / len(words),
        accuracy=sum(word.is_greedy for word in words) / len(words),
    )
