"""Run tasks of lm-evaluation-harness on a model in memory.

The harness is an optional dependency (``attractor-models[eval]``). It is imported only when a task runs.
"""

import difflib
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attractor.errors import ConfigError, DataError
from attractor.evaluation.text import encode, known_budget


def harness(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    batch_size: int = 8,
    limit: int | None = None,
    include_path: Path | None = None,
    **budget: float | None,
) -> dict[str, dict[str, float]]:
    """Return each task's metrics under the harness's names (``"acc,none"``), from its own adapter for ``transformers`` models.

    Parameters
    ----------
    tasks
        Names of tasks, groups or tags of the harness or of ``include_path``.
    limit
        Use only the first ``limit`` items of each task.
    include_path
        A folder with YAML files of additional tasks.
    budget
        See :func:`attractor.evaluation.score_text`. It also applies to generated tokens.

    Raises
    ------
    ConfigError, DataError
        When the harness is not installed, has no such task, or cannot run it (its data cannot be downloaded, say).
    """
    lm_eval = _import()[0]
    given = known_budget(model, budget)
    manager = require_tasks(tasks, include_path)
    adapter = _adapter_class(given)(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
    try:
        results = lm_eval.simple_evaluate(
            adapter, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False, bootstrap_iters=0
        )
    except (OSError, AssertionError) as error:  # unreachable data; answers longer than the model's positions
        raise DataError(f"{', '.join(tasks)}: the harness cannot run this task ({error}).") from error
    return {
        name: {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
        for name, metrics in results["results"].items()
    }


def _adapter_class(budget: dict[str, float]) -> Any:
    _, adapter_module, utilities, _ = _import()

    class Adapter(adapter_module.HFLM):  # type: ignore[name-defined]
        """HFLM that passes the budget on, begins texts as training does, and lets the model decide about its cache."""

        begins = True  # whether a text is given with the token that precedes a document

        def tok_encode(
            self,
            string: str,
            add_special_tokens: bool | None = None,
            left_truncate_len: int | None = None,
            **_: Any,
        ) -> list[int]:
            ids: list[int] = encode(self.tokenizer, string).tolist()
            ids = ids if self.begins and add_special_tokens is not False else ids[1:]
            return ids[-left_truncate_len:] if left_truncate_len else ids

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.begins = False  # the harness itself puts it before a running text
            try:
                return super().loglikelihood_rolling(requests, disable_tqdm)
            finally:
                self.begins = True

        def tok_batch_encode(
            self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **_: Any
        ) -> tuple[Tensor, Tensor]:
            rows = [torch.tensor(self.tok_encode(each, left_truncate_len=left_truncate_len)) for each in strings]
            pad = partial(pad_sequence, batch_first=True, padding_side=padding_side)
            return pad(rows, padding_value=self.tokenizer.pad_token_id), pad([torch.ones_like(row) for row in rows])

        def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
            with torch.no_grad():
                return self.model(input_ids=inps, **budget).logits

        def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
            if settings.get("temperature", 0.0) == 0.0 and not settings.get("do_sample"):
                settings |= {"do_sample": False, "temperature": None}
            return self.model.generate(
                input_ids=context,
                max_length=max_length,
                stopping_criteria=utilities.stop_sequences_criteria(
                    self.tokenizer, stop, context.shape[1], context.shape[0]
                ),
                pad_token_id=self.tokenizer.pad_token_id,
                use_cache=self.model.config.use_cache,
                **budget,
                **settings,
            )

    return Adapter


def require_tasks(tasks: Sequence[str], include_path: Path | None = None) -> Any:
    """Return the harness's task manager (takes some seconds). Raises ConfigError for a task that it does not have."""
    *_, tasks_module = _import()
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"{include_path}: no such folder; give one with YAML files of tasks.")
    manager = tasks_module.TaskManager(include_path=None if include_path is None else str(include_path))
    for name in tasks:
        if name not in manager.all_tasks:
            nearest = difflib.get_close_matches(name, manager.all_tasks, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else "list its tasks with: lm-eval ls tasks."
            raise ConfigError(f"lm-evaluation-harness has no task {name!r}; {hint}")
    return manager


def _import() -> tuple[Any, ...]:
    names = ("lm_eval", "lm_eval.models.huggingface", "lm_eval.models.utils_hf", "lm_eval.tasks")
    try:
        return tuple(import_module(name) for name in names)
    except ImportError as error:
        raise ConfigError(
            f"tasks of lm-evaluation-harness need another library ({error}): pip install 'attractor-models[eval]'."
        ) from error
