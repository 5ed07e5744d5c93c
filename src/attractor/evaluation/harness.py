"""Any task of lm-evaluation-harness, on a model in memory.

The harness is an optional dependency (``attractor-models[eval]``) and imported only here, when it is used.
"""

import difflib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.evaluation.text import known_budget


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
    """Run tasks through the harness's own adapter for ``transformers`` models.

    Parameters
    ----------
    model, tokenizer
        A :class:`transformers.PreTrainedModel` and its tokenizer.
    tasks
        Names of tasks, groups or tags that the harness or ``include_path`` knows.
    limit
        At most so many items of each task, its first ones.
    include_path
        A folder with YAML descriptions of more tasks.
    budget
        See :func:`attractor.evaluation.score_text`; holds for generated tokens too.

    Returns
    -------
    Metrics by task, as the harness names them (``"acc,none"``), without standard errors.

    Raises
    ------
    ConfigError
        Where the harness is not installed, or does not know a task.
    DataError
        Where a task cannot run, as when its data is on a hub that cannot be reached.
    """
    lm_eval, adapter_module, utilities, _ = _import()
    given = known_budget(model, budget)
    manager = require_tasks(tasks, include_path)

    class Adapter(adapter_module.HFLM):  # type: ignore[name-defined]
        """HFLM that hands the budget on, and leaves it to the model whether it keeps a cache."""

        def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
            with torch.no_grad():
                return self.model(input_ids=inps, **given).logits

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
                **given,
                **settings,
            )

    adapter = Adapter(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = lm_eval.simple_evaluate(
            adapter, tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False, bootstrap_iters=0
        )
    except (OSError, AssertionError) as error:  # data out of reach; answers longer than the model's positions
        raise DataError(f"{', '.join(tasks)}: the harness cannot run this ({error}).") from error
    return {
        name: {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
        for name, metrics in found["results"].items()
    }


def require_tasks(tasks: Sequence[str], include_path: Path | None = None) -> Any:
    """Return the harness's task manager after checking that it knows ``tasks``; takes some seconds. Raises ConfigError."""
    *_, tasks_module = _import()
    manager = tasks_module.TaskManager(include_path=None if include_path is None else str(include_path))
    for name in tasks:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=1, cutoff=0.5)
            offer = f"did you mean {near[0]!r}?" if near else "its names are listed by: lm-eval ls tasks."
            raise ConfigError(f"lm-evaluation-harness has no task {name!r}; {offer}")
    return manager


def _import() -> tuple[Any, ...]:
    names = ("lm_eval", "lm_eval.models.huggingface", "lm_eval.models.utils_hf", "lm_eval.tasks")
    try:
        return tuple(import_module(name) for name in names)
    except ImportError as error:
        raise ConfigError(
            f"tasks of lm-evaluation-harness need one more library ({error}): pip install 'attractor-models[eval]'."
        ) from error
