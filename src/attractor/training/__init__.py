"""The training loop, its checkpoints and its callbacks. It knows no concrete model."""

from typing import TYPE_CHECKING, Any

from attractor.errors import requires_extra

with requires_extra("train"):
    from attractor.training.checkpoint import (
        Checkpoints,
        find_checkpoint,
        load_model,
        read_run,
        verify_inference,
    )
from attractor.training.config import PRECISIONS, Objective, TrainConfig
from attractor.training.distributed import DistributedContext, init_distributed, should_report_error
from attractor.training.guard import GuardConfig
from attractor.training.log import Callback, Report
from attractor.training.loggers import make_logger
from attractor.training.preemption import Preemption

if TYPE_CHECKING:
    from attractor.training.loop import train


def __getattr__(name: str) -> Any:
    """Import the loop when it is used: inference needs none of PyTorch's tools for several processes."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attractor.training.loop import train

    return train


__all__ = [
    "PRECISIONS",
    "Callback",
    "Checkpoints",
    "DistributedContext",
    "GuardConfig",
    "Objective",
    "Preemption",
    "Report",
    "TrainConfig",
    "find_checkpoint",
    "init_distributed",
    "load_model",
    "make_logger",
    "read_run",
    "should_report_error",
    "train",
    "verify_inference",
]
