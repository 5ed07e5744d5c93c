"""The CORE tasks of DCLM, and LAMBADA, read from an evaluation bundle's folder.

A bundle holds ``core.yaml`` (the tasks), ``eval_meta_data.csv`` (random baselines) and one ``.jsonl`` file a task, plain or
compressed. Prompts, few-shot draws and scoring are nanochat's (``core_eval.py``), so that figures compare with its published ones.

Source: DCLM, arXiv:2406.11794; LAMBADA, arXiv:1606.06031.
"""

import csv
import json
import lzma
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from torch import Tensor

from attractor.config import suggestion
from attractor.data.text.documents import OPENERS
from attractor.errors import AttractorError, ConfigError, DataError
from attractor.evaluation.text import Continuation, encode, max_length, perplexity, score_continuations

Item = dict[str, Any]
# What an item of each kind must hold, and of which type.
FIELDS: dict[str, dict[str, type]] = {
    "multiple_choice": {"query": str, "choices": list, "gold": int},
    "schema": {"context_options": list, "continuation": str, "gold": int},
    "language_modeling": {"context": str, "continuation": str},
}
ORDER_SEED, DRAW_SEED = 1337, 1234  # nanochat's


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of a bundle.

    Attributes
    ----------
    kind
        ``multiple_choice``, ``schema`` or ``language_modeling``.
    file
        None where the bundle lacks it.
    rebuilt
        Whether that is ``NAME_rebuilt.jsonl``, made again from its source: equivalent, but not the bundle's own.
    num_fewshot
        Solved examples before each question.
    delimiter
        Between a context and its continuation.
    baseline
        Accuracy of guessing, in [0, 1).
    """

    label: str
    kind: str
    file: Path | None
    rebuilt: bool
    num_fewshot: int
    delimiter: str
    baseline: float


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Share of right answers to ``num_items`` of the task's ``num_all`` questions.

    ``num_cut`` items were longer than the model's positions, and lost the beginning of their prompts; ``rebuilt`` is
    the :class:`Task`'s.
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
        """0 for guessing, 1 for all right."""
        return (self.accuracy - self.baseline) / (1 - self.baseline)


@dataclass(frozen=True, kw_only=True)
class CoreScore:
    """The tasks that were there, and the labels of those that were missing."""

    tasks: tuple[TaskScore, ...]
    missing: tuple[str, ...]

    @property
    def name(self) -> str:
        """CORE only where it is all of it, from the original files; CORE-n for n tasks."""
        whole = not self.missing and not any(task.rebuilt for task in self.tasks)
        return "CORE" if whole else f"CORE-{len(self.tasks)}"

    @property
    def value(self) -> float:
        """Mean centred accuracy."""
        return math.fsum(t.centred for t in self.tasks) / len(self.tasks)


@dataclass(frozen=True, kw_only=True)
class LambadaScore:
    """Prediction of a passage's last word, over ``num_items`` of ``num_all`` passages.

    ``log_likelihood`` is the mean per word, in nats; ``accuracy`` the share that greedy decoding gets right in every token.
    """

    num_items: int
    num_all: int
    num_cut: int
    log_likelihood: float
    accuracy: float

    @property
    def perplexity(self) -> float:
        """Per word."""
        return perplexity(-self.log_likelihood)


def read_tasks(bundle: Path) -> tuple[Task, ...]:
    """Return the tasks that ``bundle`` describes, in its order.

    Raises
    ------
    DataError
        Where the folder is no bundle.
    """
    listed = bundle / "core.yaml"
    try:
        entries = yaml.safe_load(listed.read_text())["icl_tasks"]
        with (bundle / "eval_meta_data.csv").open(newline="") as file:
            baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
        tasks = tuple(_task(bundle, entry, baselines) for entry in entries)
    except AttractorError:
        raise
    except OSError as error:
        raise DataError(f"{bundle}: no evaluation bundle ({error}); give a folder with core.yaml in it.") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{bundle}: core.yaml and eval_meta_data.csv cannot be understood ({error!r}).") from error
    if not tasks:
        raise DataError(f"{listed}: lists no task.")
    return tasks


def find_task(bundle: Path, label: str) -> Task:
    """Return one task of ``bundle`` by its label."""
    tasks = {task.label: task for task in read_tasks(bundle)}
    if label not in tasks:
        raise DataError(f"{bundle}: has no task {label!r}; {suggestion(label, tasks)}")
    return tasks[label]


def read_items(task: Task) -> list[Item]:
    """Return the task's questions in the order of its file, each checked.

    Raises
    ------
    DataError
        For files that are missing, damaged, or hold something else.
    """
    file, items = task.file, []
    if file is None:
        raise DataError(f"{task.label}: the bundle lacks this task's file; add it, or leave the task out.")
    try:
        with file.open("rb") as raw:
            lines = OPENERS[file.suffix](raw) if file.suffix in OPENERS else raw
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    items.append(_checked(json.loads(line), task.kind, f"{file}: line {number}"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: line {number} is not JSON ({error.msg}).") from error
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise DataError(f"{file}: cannot be read ({error}).") from error
    if len(items) <= task.num_fewshot:
        raise DataError(f"{file}: {len(items)} item(s) are too few for {task.num_fewshot} examples before each.")
    return items


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
    """Ask the model every question of ``task``, or a seeded choice of ``limit``.

    Multiple choice and schema go to the lowest mean loss of what differs, or of what follows; a continuation is right where greedy
    decoding writes it. ``advance`` and ``budget`` are those of :func:`attractor.evaluation.score_text`.
    """
    asked = _ask(model, tokenizer, task, limit, batch_size, advance, budget)
    return TaskScore(
        label=task.label,
        rebuilt=task.rebuilt,
        num_items=len(asked.items),
        num_all=asked.num_all,
        num_cut=asked.num_cut,
        accuracy=sum(_is_right(task.kind, i, s) for i, s in zip(asked.items, asked.scores, strict=True))
        / len(asked.items),
        baseline=task.baseline,
    )


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
    """Run every task of ``bundle`` whose file is there, at most ``limit`` items of each; ``advance`` also hears which."""
    tasks = read_tasks(bundle)
    present = [task for task in tasks if task.file is not None]
    if not present:
        raise DataError(f"{bundle}: holds no data file of any of its {len(tasks)} tasks.")

    def score(task: Task) -> TaskScore:
        def report(done: int, total: int) -> None:
            advance(task.label, done, total)

        return evaluate_task(model, tokenizer, task, limit=limit, batch_size=batch_size, advance=report, **budget)

    return CoreScore(
        tasks=tuple(score(task) for task in present),
        missing=tuple(task.label for task in tasks if task.file is None),
    )


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
    """Predict the last words of the bundle's ``lambada_openai``; arguments as in :func:`evaluate_task`."""
    asked = _ask(model, tokenizer, find_task(bundle, "lambada_openai"), limit, batch_size, advance, budget)
    words = [word for (word,) in asked.scores]
    return LambadaScore(
        num_items=len(words),
        num_all=asked.num_all,
        num_cut=asked.num_cut,
        log_likelihood=math.fsum(w.log_likelihood for w in words) / len(words),
        accuracy=sum(w.is_greedy for w in words) / len(words),
    )


def draw_examples(items: Sequence[Item], index: int, num: int) -> list[Item]:
    """Draw ``num`` of ``items`` to stand before item ``index``, never itself; the same ones every time."""
    drawn = random.Random(DRAW_SEED + index).sample(range(len(items) - 1), num)
    return [items[i + (i >= index)] for i in drawn]


def prompts(task: Task, item: Item, examples: Sequence[Item]) -> list[str]:
    """Write out the item behind its examples: once an option, or without and with the continuation."""
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
        texts[0] = texts[0].strip()  # a delimiter's last space belongs to the continuation's first token
    return texts


def continuations(tokenizer: Any, task: Task, texts: Sequence[str]) -> list[tuple[Tensor, int]]:
    """Tokenise prompts, and say from where on each is scored."""
    tokens = [encode(tokenizer, text) for text in texts]
    if task.kind == "schema":
        suffix = _common([t.flip(0) for t in tokens])
        return [(t, max(len(t) - suffix, 1)) for t in tokens]
    start = _common(tokens)
    if task.kind == "language_modeling":
        return [(tokens[1], min(start, len(tokens[1]) - 1))]
    return [(t, min(start, len(t) - 1)) for t in tokens]  # at least one token, should one option begin another


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Items of a task, and the scores of each one's continuations."""

    items: list[Item]
    scores: list[list[Continuation]]
    num_all: int
    num_cut: int


def _ask(
    model: Any,
    tokenizer: Any,
    task: Task,
    limit: int | None,
    batch_size: int,
    advance: Callable[[int, int], None],
    budget: dict[str, float | None],
) -> _Asked:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: give at least 1 item a task, or no limit.")
    items = read_items(task)
    # Shuffled, because files may be sorted; examples are drawn from all items, so that a limit changes no prompt.
    random.Random(ORDER_SEED).shuffle(items)
    chosen = items[:limit]
    sequences: list[tuple[Tensor, int]] = []
    owners, most, cut = [], max_length(model), set()
    for index, item in enumerate(chosen):
        texts = prompts(task, item, draw_examples(items, index, task.num_fewshot))
        for tokens, start in continuations(tokenizer, task, texts):
            if (excess := len(tokens) - most) > 0:
                cut.add(index)
                tokens, start = tokens[excess:], max(start - excess, 1)
            sequences.append((tokens, start))
            owners.append(index)
    scores: list[list[Continuation]] = [[] for _ in chosen]
    found = score_continuations(model, sequences, batch_size=batch_size, advance=advance, **budget)
    for owner, score in zip(owners, found, strict=True):
        scores[owner].append(score)
    return _Asked(items=chosen, scores=scores, num_all=len(items), num_cut=len(cut))


def _is_right(kind: str, item: Item, scores: list[Continuation]) -> bool:
    if kind == "language_modeling":
        return scores[0].is_greedy
    losses = [-s.log_likelihood / s.num_tokens for s in scores]
    return losses.index(min(losses)) == item["gold"]


def _common(tokens: Sequence[Tensor]) -> int:
    """Return how many leading tokens all have in common."""
    shortest = min(len(t) for t in tokens)
    same = [(t[:shortest] == tokens[0][:shortest]).long().cumprod(0) for t in tokens[1:]]
    return min((int(s.sum()) for s in same), default=shortest)


def _task(bundle: Path, entry: dict[str, Any], baselines: dict[str, float]) -> Task:
    label, kind = entry["label"], entry["icl_task_type"]
    if kind not in FIELDS:
        raise DataError(f"{bundle / 'core.yaml'}: {label} is of a kind {kind!r}; {suggestion(str(kind), FIELDS)}")
    if label not in baselines:
        raise DataError(f"{bundle / 'eval_meta_data.csv'}: has no random baseline for {label}; add its row.")
    original = Path(entry["dataset_uri"])
    places = [
        (bundle / folder / name.with_name(name.name + suffix), name != original)
        for name in (original, original.with_stem(original.stem + "_rebuilt"))
        for folder in ("", "eval_data")  # the second is where the published archive keeps them
        for suffix in ("", *OPENERS)
    ]
    file, rebuilt = next(((place, rebuilt) for place, rebuilt in places if place.is_file()), (None, False))
    return Task(
        label=label,
        kind=kind,
        file=file,
        rebuilt=rebuilt,
        num_fewshot=int(entry["num_fewshot"][0]),
        delimiter=entry.get("continuation_delimiter", " "),
        baseline=baselines[label],
    )


def _checked(item: Any, kind: str, where: str) -> Item:
    for name, wanted in FIELDS[kind].items():
        if not isinstance(item, dict) or not isinstance(item.get(name), wanted):
            raise DataError(f"{where}: a {kind} item needs {name!r} ({wanted.__name__}).")
    if kind != "language_modeling":
        options = item["choices" if kind == "multiple_choice" else "context_options"]
        if not (all(isinstance(option, str) for option in options) and 0 <= item["gold"] < len(options)):
            raise DataError(f"{where}: gold={item['gold']} must be one of its {len(options)} options, each a text.")
    return item
