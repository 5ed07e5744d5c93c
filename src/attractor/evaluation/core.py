"""CORE and CORE-Extended, mean centred accuracies of in-context learning tasks; LAMBADA, the last word of a passage.

Prompts, few-shot examples and scoring follow nanochat's ``core_eval.py``, so the results compare with its published ones.
Sources: DCLM, arXiv:2406.11794; LAMBADA, arXiv:1606.06031.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.evaluation.bundle import Item, Task, find_task, read_items, read_tasks
from attractor.evaluation.text import ContinuationScore, encode, max_length, perplexity, score_continuations

SHUFFLE_SEED, FEWSHOT_SEED = 1337, 1234  # nanochat's


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Accuracy on ``num_items`` of the task's ``num_all`` items, the mean over the seeds of the few-shot examples.

    The prompts of ``num_cut`` items (the most of all seeds) exceeded the model's positions and lost their beginnings.
    ``rebuilt`` is that of :class:`Task`.
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
    extended: bool = False

    @property
    def name(self) -> str:
        """``CORE`` or ``CORE-Extended`` when every task ran on its original file, otherwise with ``-n`` for n tasks."""
        complete = not self.missing and not any(task.rebuilt for task in self.tasks)
        return ("CORE-Extended" if self.extended else "CORE") + ("" if complete else f"-{len(self.tasks)}")

    @property
    def value(self) -> float:
        """Mean centred accuracy."""
        return math.fsum(t.centred for t in self.tasks) / len(self.tasks)


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
    extended: bool = False,
    advance: Callable[[str, int, int], None] = lambda label, done, total: None,
    **settings: Any,
) -> CoreScore:
    """Evaluate every task of CORE, or of CORE-Extended, that has a file in ``bundle``.

    Settings are those of :func:`evaluate_task`; ``advance`` gets the label first.
    """
    tasks = read_tasks(bundle, extended=extended)
    present = [task for task in tasks if task.file is not None]
    if not present:
        raise DataError(f"{bundle}: has no data file for any of its {len(tasks)} tasks.")
    return CoreScore(
        tasks=tuple(evaluate_task(model, tokenizer, t, advance=partial(advance, t.label), **settings) for t in present),
        missing=tuple(task.label for task in tasks if task.file is None),
        extended=extended,
    )


def evaluate_task(
    model: Any, tokenizer: Any, task: Task, *, fewshot_seeds: Sequence[int] = (FEWSHOT_SEED,), **settings: Any
) -> TaskScore:
    """Evaluate a model on one task.

    The answer to a multiple-choice or schema item is the option with the lowest mean loss per scored token. A language modelling
    item is correct when greedy decoding gives its continuation.

    Parameters
    ----------
    fewshot_seeds
        The accuracy is the mean over these seeds of the few-shot examples. A task without examples runs once.
    settings
        ``limit``: use only so many items, the same random ones every time. Others as in
        :func:`attractor.evaluation.score_text`: ``batch_size``, ``advance``, and the budget.

    Raises
    ------
    ConfigError
        For no seed, a limit below 1, or a budget that the model does not support.
    DataError
        When the task's file is missing or damaged.
    """
    if not fewshot_seeds:
        raise ConfigError("fewshot_seeds: give at least one seed.")
    seeds = fewshot_seeds if task.num_fewshot else fewshot_seeds[:1]
    runs = [score_items(model, tokenizer, task, fewshot_seed=seed, **settings) for seed in seeds]
    correct = [_is_correct(task.kind, *pair) for run in runs for pair in zip(run.items, run.scores, strict=True)]
    return TaskScore(
        label=task.label,
        rebuilt=task.rebuilt,
        num_items=len(runs[0].items),
        num_all=runs[0].num_all,
        num_cut=max(run.num_cut for run in runs),
        accuracy=sum(correct) / len(correct),
        baseline=task.baseline,
    )


def lambada(model: Any, tokenizer: Any, bundle: Path, **settings: Any) -> LambadaScore:
    """Evaluate a model on ``lambada_openai`` of ``bundle``. Settings and errors as in :func:`evaluate_task`."""
    found = score_items(model, tokenizer, find_task(bundle, "lambada_openai"), **settings)
    words = [word for (word,) in found.scores]
    return LambadaScore(
        num_items=len(words),
        num_all=found.num_all,
        num_cut=found.num_cut,
        log_likelihood=math.fsum(word.log_likelihood for word in words) / len(words),
        accuracy=sum(word.is_greedy for word in words) / len(words),
    )


def score_items(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    limit: int | None = None,
    fewshot_seed: int = FEWSHOT_SEED,
    **settings: Any,
) -> ItemScores:
    """Score the continuations of each item. Settings and errors as in :func:`evaluate_task`."""
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: give at least 1 item per task, or no limit.")
    items = read_items(task)
    # Files may be sorted, so shuffle. Few-shot examples come from all items, so a limit changes no prompt.
    random.Random(SHUFFLE_SEED).shuffle(items)
    chosen = items[:limit]
    sequences: list[tuple[Tensor, int]] = []
    owners, num_positions, cut = [], max_length(model), set()
    for index, item in enumerate(chosen):
        texts = prompts(task, item, draw_examples(items, index, task.num_fewshot, fewshot_seed))
        for tokens, start in continuations(tokenizer, task, texts):
            if (excess := len(tokens) - num_positions) > 0:
                cut.add(index)
                tokens, start = tokens[excess:], max(start - excess, 1)
            sequences.append((tokens, start))
            owners.append(index)
    scores: list[list[ContinuationScore]] = [[] for _ in chosen]
    for owner, score in zip(owners, score_continuations(model, sequences, **settings), strict=True):
        scores[owner].append(score)
    return ItemScores(items=chosen, scores=scores, num_all=len(items), num_cut=len(cut))


def draw_examples(items: Sequence[Item], index: int, num: int, seed: int = FEWSHOT_SEED) -> list[Item]:
    """Return ``num`` few-shot examples for item ``index``: never the item itself, and the same ones every time."""
    drawn = random.Random(seed + index).sample(range(len(items) - 1), num)
    return [items[i + (i >= index)] for i in drawn]


def prompts(task: Task, item: Item, examples: Sequence[Item]) -> list[str]:
    """Return the item's prompts after its examples: one per option, or one without and one with the continuation."""
    right = [0 if task.kind == "language_modeling" else e["gold"] for e in examples]
    solved = [task.delimiter.join(_options(task.kind, e)[i]) for e, i in zip(examples, right, strict=True)]
    ends = [task.delimiter.join(option) for option in _options(task.kind, item)]
    if task.kind == "language_modeling":
        ends.insert(0, item["context"].strip() + task.delimiter)
    texts = ["\n\n".join([*solved, end]) for end in ends]
    if task.kind == "language_modeling":
        texts[0] = texts[0].strip()  # the delimiter's last space belongs to the first token of the continuation
    return texts


def _options(kind: str, item: Item) -> list[tuple[str, str]]:
    """Return the contexts of an item with their continuations, one of which is right."""
    if kind == "multiple_choice":
        return [(item["query"], choice) for choice in item["choices"]]
    if kind == "schema":
        return [(context, item["continuation"]) for context in item["context_options"]]
    return [(item["context"].strip(), item["continuation"])]


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
