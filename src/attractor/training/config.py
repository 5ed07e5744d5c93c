"""The settings of a training run, and the interface of an objective."""

from collections.abc import Sequence
from dataclasses import field
from typing import Protocol

import torch
from torch import Tensor, nn

from attractor.config import config_class, require_positive, require_whole, suggestion
from attractor.errors import ConfigError
from attractor.optim import OptimizerConfig, require_patterns
from attractor.training.guard import GuardConfig

STRATEGIES = ("ddp", "fsdp")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@config_class
class TrainConfig:
    """How long and how to train.

    Attributes
    ----------
    num_steps, seconds
        The run ends at the limit that it reaches first; give at least one. Evaluation and checkpoints count as time.
    freeze
        Regular expression (``re.search``) for the names of parameters that are not trained: they have no gradient and no
        optimiser state. In language recipes, ``"backbone"`` means all parameters outside the attractor's layers. Empty:
        none.
    warmup_fraction
        The first part of the run, in which the learning rate rises linearly from 0.
    cooldown_fraction
        The last part of the run, in which the learning rate falls linearly to 0.
    ema_decay
        Decay of the averaged weights, which evaluation and inference use; it rises to this value over the first steps,
        see :func:`attractor.training.parallel.averaged_model`. Embeddings that SignSGD trains are not averaged. 0: no
        average; the last weights are used.
    accumulate
        Batches per optimiser step. Their gradients are averaged.
    precision
        ``"fp32"``, or ``"bf16"`` for matrix products under autocast. Weights and solver states stay in float32.
    compile
        Whether to compile the model's blocks, see :func:`attractor.nn.compile_blocks`. None: on a GPU only. Compiling
        takes a minute or two and changes rounding, so a resumed run must keep the setting.
    parallel
        On several processes: ``"ddp"`` replicates the model, ``"fsdp"`` shards weights, averages and optimiser states.
    grad_reduce_dtype
        Sum gradients over processes in ``"fp32"``, or in ``"bf16"`` with half the traffic.
    timeout_seconds
        How long a process waits for another one that no longer answers.
    seed
        The seed of the weights and of everything random in training.
    log_every
        Steps between two reports.
    checkpoint_every
        Steps between two checkpoints. 0: only at the end.
    max_checkpoints
        How many of the newest checkpoints to keep.
    """

    num_steps: int | None = None
    seconds: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    freeze: str = ""
    warmup_fraction: float = 0.02
    cooldown_fraction: float = 0.5
    ema_decay: float = 0.995
    accumulate: int = 1
    precision: str = "fp32"
    compile: bool | None = None
    parallel: str = "ddp"
    grad_reduce_dtype: str = "fp32"
    guard: GuardConfig = field(default_factory=GuardConfig)
    timeout_seconds: float = 300.0
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    max_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.num_steps is None and self.seconds is None:
            raise ConfigError("train: give num_steps or seconds, so that the run can end.")
        require_patterns(self, "freeze")
        require_whole(self, 1, "log_every", "accumulate", "max_checkpoints")
        require_whole(self, 1, *(["num_steps"] if self.num_steps is not None else []))
        require_whole(self, 0, "checkpoint_every", "seed")
        require_positive(self, "timeout_seconds", *(["seconds"] if self.seconds is not None else []))
        for name, valid in (("precision", PRECISIONS), ("grad_reduce_dtype", PRECISIONS), ("parallel", STRATEGIES)):
            if (value := getattr(self, name)) not in valid:
                raise ConfigError(f"TrainConfig({name}={value!r}): {suggestion(value, valid)}")
        for name, is_valid, interval in (
            ("cooldown_fraction", 0 <= self.cooldown_fraction <= 1, "[0, 1]"),
            ("warmup_fraction", 0 <= self.warmup_fraction < 1, "[0, 1)"),
            ("ema_decay", 0 <= self.ema_decay < 1, "[0, 1)"),
        ):
            if not is_valid:
                raise ConfigError(f"TrainConfig({name}={getattr(self, name)!r}): give a number in {interval}.")


class Objective(Protocol):
    """A loss to minimise, and the state that a resumed run needs.

    On several processes each has its own objective, which draws this rank's part of every batch.
    """

    def step(self, model: nn.Module, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the next batch and detached scalar metrics. ``model`` may be wrapped: see ``unwrap_model``.

        ``progress`` is the finished part of the run, in [0, 1].
        """

    def diagnostics(self, model: nn.Module) -> dict[str, float]:
        """Return more metrics for the log. They may take some time: this is called every ``log_every`` steps."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return metrics of ``model``, which is not wrapped, on held-out examples; nothing if there are none.

        The loop limits its share of the time. All ranks call it at the same steps.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return this rank's state."""

    def load_state_dict(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Restore the states of all ranks of the saved run, in rank order. It may have had another number of ranks."""
