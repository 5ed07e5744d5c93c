"""Evaluate a language model on held-out text, conversations, LAMBADA, CORE, CORE-Extended and lm-evaluation-harness."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from attractor.config import suggestion
from attractor.data.text import ReadStats, answers, read_held_out
from attractor.errors import ConfigError, DataError
from attractor.evaluation.bundle import find_task, read_tasks
from attractor.evaluation.core import core, evaluate_task, lambada
from attractor.evaluation.harness import harness, require_tasks
from attractor.evaluation.text import (
    DEFAULT_WINDOW,
    effective_budget,
    known_budget,
    max_length,
    perplexity,
    score_continuations,
    score_text,
)
from attractor.experiment.loading import LoadedLanguageModel, load_language_model
from attractor.files import json_safe, write_json
from attractor.progress import Advance, TaskProgress

Figures = dict[str, Any]
HARNESS = "harness:"


def held_out_paths(data: tuple[str | Path, ...]) -> tuple[Path, ...]:
    """Return paths of held-out text. Raises DataError if one does not exist."""
    for path in map(Path, data):
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; give held-out documents with --data.")
    return tuple(map(Path, data))


@dataclass(frozen=True, kw_only=True)
class LanguageEvaluation:
    """What to evaluate, see :func:`attractor.evaluate`. Mistakes are found before a model is loaded."""

    tasks: tuple[str, ...]
    data: tuple[Path, ...]
    bundle: Path | None
    fewshot_seeds: tuple[int, ...] | None
    field: str | None
    length: int | None
    stride: int | None
    limit: int | None
    batch_size: int
    include_path: Path | None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("there is no task; give text, chat, lambada, core or harness:NAME as tasks.")
        if {"text", "chat"} <= {*self.tasks}:
            raise ConfigError("the tasks text and chat read different data; evaluate one after the other.")
        for task, what in (("text", "documents; give files or folders"), ("chat", "conversations; give a file .jsonl")):
            if task in self.tasks and not self.data:
                raise ConfigError(f"the task {task} needs held-out {what} with --data.")
        for name in ("data", "field", "length", "stride"):
            readers = ("text", "chat") if name in ("data", "length") else ("text",)
            if getattr(self, name) not in (None, ()) and not {*readers} & {*self.tasks}:
                raise ConfigError(f"{name} is for the task {' or '.join(readers)}, not for {', '.join(self.tasks)}.")
        held_out_paths(self.data)
        if foreign := [task.removeprefix(HARNESS) for task in self.tasks if task.startswith(HARNESS)]:
            require_tasks(foreign, self.include_path)
        elif self.include_path is not None:
            raise ConfigError("include_path is for tasks of lm-evaluation-harness; name one with harness:NAME.")
        bundled = [task for task in self.tasks if task not in ("text", "chat") and not task.startswith(HARNESS)]
        if self.fewshot_seeds is not None and not set(bundled) - {"lambada"}:
            raise ConfigError("fewshot_seeds is for core, core-extended and their tasks; name one of them in tasks.")
        self._require_bundle_tasks(bundled)

    def _require_bundle_tasks(self, tasks: list[str]) -> None:
        if not tasks:
            if self.bundle is not None:
                raise ConfigError(
                    "bundle is for lambada, core, core-extended and their tasks; name one of them in tasks."
                )
            return
        if self.bundle is None:
            raise ConfigError(
                f"the task {tasks[0]!r} is not known without an evaluation bundle; choose text, chat, lambada, core or "
                "harness:NAME, or give the bundle that has the task with --bundle."
            )
        labels = [task.label for task in read_tasks(self.bundle, extended=True)]
        known = ["lambada", "core", "core-extended", *labels]
        for task in tasks:
            if task not in known:
                raise ConfigError(f"unknown task {task!r}; {suggestion(task, ['text', 'chat', *known])}")

    def run(
        self,
        model: LoadedLanguageModel | Path,
        budget: dict[str, float | None],
        *,
        out: Path | None,
        progress: bool,
    ) -> Figures:
        """Run every task and return all figures."""
        loaded = model if isinstance(model, LoadedLanguageModel) else load_language_model(model)
        known = known_budget(loaded.model, budget)
        figures: Figures = {"checkpoint": str(loaded.path), "limit": self.limit, "results": {}}
        figures["budget"] = effective_budget(loaded.model, budget)
        if self.fewshot_seeds is not None:
            figures["fewshot_seeds"] = list(self.fewshot_seeds)
        with TaskProgress(enabled=progress) as bars:
            for task in self.tasks:
                figures["results"] |= json_safe(self._run_task(task, loaded, known, bars.follow))
                if out is not None:  # after every task, because the next one may fail or take hours
                    write_json(out, figures)
        return figures

    def _run_task(
        self, task: str, loaded: LoadedLanguageModel, budget: dict[str, float], follow: Callable[[str], Advance]
    ) -> dict[str, Figures]:
        model, tokenizer = loaded.model, loaded.tokenizer
        shared: dict[str, Any] = {"batch_size": self.batch_size, **budget}
        if task == "text":
            return {task: self._text(loaded, shared, follow(task))}
        if task == "chat":
            return {task: self._chat(loaded, shared, follow(task))}
        shared["limit"] = self.limit
        if task.startswith(HARNESS):
            names = [task.removeprefix(HARNESS)]
            found = harness(model, tokenizer, names, include_path=self.include_path, **shared)
            return {HARNESS + name: figures for name, figures in found.items()}
        assert self.bundle is not None
        if task == "lambada":
            words = lambada(model, tokenizer, self.bundle, advance=follow(task), **shared)
            return {task: {"perplexity": words.perplexity, **asdict(words)}}
        if self.fewshot_seeds is not None:
            shared["fewshot_seeds"] = self.fewshot_seeds
        if task not in ("core", "core-extended"):
            score = evaluate_task(model, tokenizer, find_task(self.bundle, task), advance=follow(task), **shared)
            return {score.label: {"centred": score.centred, **asdict(score)}}
        shared |= {"extended": task == "core-extended", "advance": lambda label, *counts: follow(label)(*counts)}
        total = core(model, tokenizer, self.bundle, **shared)
        results = {score.label: {"centred": score.centred, **asdict(score)} for score in total.tasks}
        return results | {total.name: {"centred": total.value, "missing": list(total.missing)}}

    def _text(self, loaded: LoadedLanguageModel, shared: dict[str, Any], advance: Advance) -> Figures:
        window = min(max_length(loaded.model), DEFAULT_WINDOW) if self.length is None else self.length
        stats = ReadStats()
        documents = islice(read_held_out(self.data, self.field or "text", stats), self.limit)
        shared |= {"length": window, "stride": self.stride, "advance": advance}
        score = score_text(loaded.model, loaded.tokenizer, documents, **shared)
        figures = {
            "bits_per_byte": score.bits_per_byte,
            "perplexity": score.perplexity,
            **asdict(score),
            "length": window,
        }
        left_out = {
            "num_left_out": stats.num_left_out,
            "left_out": stats.left_out,
        }  # the files without text, or records
        return figures | (left_out if stats.num_left_out else {})

    def _chat(self, loaded: LoadedLanguageModel, shared: dict[str, Any], advance: Advance) -> Figures:
        """Return the loss in nats per token of the assistant's answers, each after all that precedes it."""
        length = max_length(loaded.model) if self.length is None else self.length
        found = [answer for file in self.data for answer in answers(file, loaded.tokenizer, length)][: self.limit]
        scores = score_continuations(
            loaded.model, [answer for answer in found if answer is not None], advance=advance, **shared
        )
        if not scores:
            raise DataError(f"no answer ends within {length} tokens; give shorter conversations or a larger length.")
        num_tokens = sum(score.num_tokens for score in scores)
        loss = -math.fsum(score.log_likelihood for score in scores) / num_tokens
        figures: Figures = {"loss": loss, "perplexity": perplexity(loss)}
        for name, total in (
            ("evaluations", "evaluations"),
            ("residual", "residual"),
            ("converged_fraction", "num_converged"),
        ):
            values = [getattr(score, total) for score in scores]
            figures[name] = None if None in values else math.fsum(values) / num_tokens
        return figures | {"num_answers": len(scores), "num_tokens": num_tokens, "num_left_out": found.count(None)}
