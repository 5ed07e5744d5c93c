"""What a run is told: how long and how to train, and what an objective is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from attractor.config import require_positive, require_whole, suggestion
from attractor.errors import ConfigError
from attractor.optim import OptimizerConfig
from attractor.training.guard import GuardConfig
from attractor.training.parallel import STRATEGIES

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train.

    Attributes
    ----------
    num_steps, seconds
        The run ends at whichever is reached first; at least one is given. Evaluation and checkpoints count as time.
    warmup, decay
        Shares of the run for the rise and the fall of the learning rate, see :func:`attractor.optim.trapezoid`.
    ema
        Decay of the averaged weights, which are the ones that evaluation and inference use; 0 uses the last ones.
    accumulate
        Batches per optimiser step; their gradients are averaged.
    precision
        ``"fp32"``, or ``"bf16"`` for matrix products under autocast. Weights and solver states stay in float32.
    compile
        Whether the model's blocks are compiled, see :func:`attractor.nn.compile_blocks`; ``None``: on a GPU. It takes a minute or
        two and changes roundings, so a resumed run keeps it.
    parallel, reduce
        On several processes: ``"ddp"`` replicates the model, ``"fsdp"`` divides its weights, their averages and the optimiser's
        state among them. Gradients are added up in ``"fp32"``, or ``"bf16"`` at half the traffic.
    guard
        What is taken for divergence, and what is done then.
    log_every, checkpoint_every
        In steps; ``checkpoint_every=0`` checkpoints only at the end.
    keep
        Newest checkpoints that stay.
    """

    num_steps: int | None = None
    seconds: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup_fraction: float = 0.02
    cooldown_fraction: float = 0.5
    ema_decay: float = 0.995
    accumulate: int = 1
    precision: str = "fp32"
    compile: bool | None = None
    parallel: str = "ddp"
    grad_reduce_dtype: str = "fp32"
    guard: GuardConfig = field(default_factory=GuardConfig)
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    max_checkpoints: int = 2

    def __post_init__(self) -> None:
        if self.num_steps is None and self.seconds is None:
            raise ConfigError("train: give num_steps or seconds, so that the run can end.")
        require_whole(
            self, 1, "log_every", "accumulate", "max_checkpoints", *(["num_steps"] if self.num_steps is not None else [])
        )
        require_whole(self, 0, "checkpoint_every", "seed")
        for name, known in (("precision", PRECISIONS), ("grad_reduce_dtype", PRECISIONS), ("parallel", STRATEGIES)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"TrainConfig({name}={getattr(self, name)!r}): {suggestion(getattr(self, name), known)}"
                )
        require_positive(self, *(["seconds"] if self.seconds is not None else []))
        if not 0 <= self.cooldown_fraction <= 1:
            raise ConfigError(f"TrainConfig(decay={self.cooldown_fraction!r}): the share must lie in [0, 1].")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"TrainConfig(warmup={self.warmup_fraction!r}): the share must lie in [0, 1).")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"TrainConfig(ema={self.ema_decay!r}): the decay must lie in [0, 1).")


class Objective(Protocol):
    """What is minimised, and everything about it that a resumed run needs.

    On several processes each has its own, which draws this rank's part of every batch.
    """

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the next batch, and detached scalars worth watching. ``model`` may be wrapped: see :func:`bare`."""
        ...

    def diagnostics(self, model: nn.Module) -> dict[str, float]:
        """Return further figures for the log, which may cost a little: it is called every ``log_every`` steps."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Go on from what every rank of the run that is resumed had; it may have had more or fewer ranks."""
        ...
