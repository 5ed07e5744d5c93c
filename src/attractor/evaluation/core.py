"""CORE tasks: in-context learning tasks of an evaluation bundle, and their mean centred accuracy.

Prompts, few-shot examples and scoring follow nanochat's ``core_eval.py``, so the results compare with its published ones.
Source: DCLM, arXiv:2406.11794.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.evaluation.bundle import Item, Task, read_items, read_tasks
from attractor.evaluation.text import ContinuationScore, encode, max_length, score_continuations

SHUFFLE_SEED, FEWSHOT_SEED = 1337, 1234  # nanochat's


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Accuracy on ``num_items`` of the task's ``num_all`` items.

    ``num_cut`` prompts exceeded the model's positions and lost their beginnings. ``rebuilt`` is that of :class:`Task`.
    """

    label: str
    rebuilt: bool
    num_items: int
    num_all: int
    num_cut: int
    accuracy: float
    baseline: float

    @property
    def centred(self) -> float:
        """Accuracy scaled so that random guessing gives 0 and a perfect score gives 1."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)


@dataclass(frozen=True, kw_only=True)
class CoreScore:
    """Scores of the available tasks, and the labels of the missing ones."""

    tasks: tuple[TaskScore, ...]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """``CORE`` when every task ran on its original file, otherwise ``CORE-n`` for n tasks."""
        complete = not self.missing and not any(task.rebuilt for task in self.tasks)
        return "CORE" if complete else f"CORE-{len(self.tasks)}"

    @property
    def value(self) -> float:
        """Mean centred accuracy."""
        return math.fsum(t.centred for t in self.tasks) / len(self.tasks)


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """Items of a task with the scores of each item's continuations; other fields as in :class:`TaskScore`."""

    items: list[Item]
    scores: list[list[ContinuationScore]]
    num_all: int
    num_cut: int


def core(
    model: Any,
    tokenizer: Any,
    bundle: Path,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    advance: Callable[[str, int, int], None] = lambda label, done, total: None,
    **budget: float | None,
) -> CoreScore:
    """Evaluate every task of ``bundle`` that has a file. Arguments as in :func:`evaluate_task`; ``advance`` also gets the label."""
    tasks = read_tasks(bundle)
    present = [task for task in tasks if task.file is not None]
    if not present:
        raise DataError(f"{bundle}: has no data file for any of its {len(tasks)} tasks.")

    def evaluate(task: Task) -> TaskScore:
        def report(done: int, total: int) -> None:
            advance(task.label, done, total)

        return evaluate_task(model, tokenizer, task, limit=limit, batch_size=batch_size, advance=report, **budget)

    return CoreScore(
        tasks=tuple(evaluate(task) for task in present),
        missing=tuple(task.label for task in tasks if task.file is None),
    )


def evaluate_task(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    advance: Callable[[int, int], None] = lambda done, total: None,
    **budget: float | None,
) -> TaskScore:
    """Evaluate a model on one task.

    The answer to a multiple-choice or schema item is the option with the lowest mean loss per scored token. A language modelling
    item is correct when greedy decoding gives its continuation.

    Parameters
    ----------
    model, tokenizer, batch_size, advance, budget
        See :func:`attractor.evaluation.score_text`.
    limit
        Use only so many items, the same random ones every time.

    Raises
    ------
    ConfigError
        For a limit below 1, or a budget that the model does not support.
    DataError
        When the task's file is missing or damaged.
    """
    found = score_items(model, tokenizer, task, limit=limit, batch_size=batch_size, advance=advance, **budget)
    correct = [_is_correct(task.kind, *pair) for pair in zip(found.items, found.scores, strict=True)]
    return TaskScore(
        label=task.label,
        rebuilt=task.rebuilt,
        num_items=len(correct),
        num_all=found.num_all,
        num_cut=found.num_cut,
        accuracy=sum(correct) / len(correct),
        baseline=task.baseline,
    )


def score_items(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    limit: int | None,
    batch_size: int,
    advance: Callable[[int, int], None],
    **budget: float | None,
) -> ItemScores:
    """Score the continuations of each item; arguments as in :func:`evaluate_task`."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: give at least 1 item per task, or no limit.")
    items = read_items(task)
    # Files may be sorted, so shuffle. Few-shot examples come from all items, so a limit changes no prompt.
    random.Random(SHUFFLE_SEED).shuffle(items)
    chosen = items[:limit]
    sequences: list[tuple[Tensor, int]] = []
    owners, num_positions, cut = [], max_length(model), set()
    for index, item in enumerate(chosen):
        texts = prompts(task, item, draw_examples(items, index, task.num_fewshot))
        for tokens, start in continuations(tokenizer, task, texts):
            if (excess := len(tokens) - num_positions) > 0:
                cut.add(index)
                tokens, start = tokens[excess:], max(start - excess, 1)
            sequences.append((tokens, start))
            owners.append(index)
    scores: list[list[ContinuationScore]] = [[] for _ in chosen]
    found = score_continuations(model, sequences, batch_size=batch_size, advance=advance, **budget)
    for owner, score in zip(owners, found, strict=True):
        scores[owner].append(score)
    return ItemScores(items=chosen, scores=scores, num_all=len(items), num_cut=len(cut))


def draw_examples(items: Sequence[Item], index: int, num: int) -> list[Item]:
    """Return ``num`` few-shot examples for item ``index``: never the item itself, and the same ones every time."""
    drawn = random.Random(FEWSHOT_SEED + index).sample(range(len(items) - 1), num)
    return [items[i + (i >= index)] for i in drawn]


def prompts(task: Task, item: Item, examples: Sequence[Item]) -> list[str]:
    """Return the item's prompts after its examples: one per option, or one without and one with the continuation."""
    if task.kind == "multiple_choice":
        solved = [e["query"] + task.delimiter + e["choices"][e["gold"]] for e in examples]
        ends = [item["query"] + task.delimiter + choice for choice in item["choices"]]
    elif task.kind == "schema":
        solved = [e["context_options"][e["gold"]] + task.delimiter + e["continuation"] for e in examples]
        ends = [context + task.delimiter + item["continuation"] for context in item["context_options"]]
    else:
        solved = [e["context"].strip() + task.delimiter + e["continuation"] for e in examples]
        ends = [item["context"].strip() + task.delimiter + more for more in ("", item["continuation"])]
    texts = ["\n\n".join([*solved, end]) for end in ends]
    if task.kind == "language_modeling":
        texts[0] = texts[0].strip()  # the delimiter's last space belongs to the first token of the continuation
    return texts


def continuations(tokenizer: Any, task: Task, texts: Sequence[str]) -> list[tuple[Tensor, int]]:
    """Tokenise prompts and return each (T,) with the index of its first scored token."""
    tokens = [encode(tokenizer, text) for text in texts]
    if task.kind == "schema":
        suffix = _common_prefix([t.flip(0) for t in tokens])
        return [(t, max(len(t) - suffix, 1)) for t in tokens]
    start = _common_prefix(tokens)
    if task.kind == "language_modeling":
        return [(tokens[1], min(start, len(tokens[1]) - 1))]
    return [(t, min(start, len(t) - 1)) for t in tokens]  # at least one token when one option is a prefix of another


def _is_correct(kind: str, item: Item, scores: list[ContinuationScore]) -> bool:
    if kind == "language_modeling":
        return scores[0].is_greedy
    losses = [-s.log_likelihood / s.num_tokens for s in scores]
    return losses.index(min(losses)) == item["gold"]


def _common_prefix(tokens: Sequence[Tensor]) -> int:
    """Return the length of the longest common prefix."""
    shortest = min(len(t) for t in tokens)
    same = [(t[:shortest] == tokens[0][:shortest]).long().cumprod(0) for t in tokens[1:]]
    return min((int(s.sum()) for s in same), default=shortest)
