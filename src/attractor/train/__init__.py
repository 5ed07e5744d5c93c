"""The one training loop, its checkpoints and its callbacks. Knows no concrete model."""

from attractor.train.checkpoint import find_checkpoint, load_model, read_run, save_checkpoint
from attractor.train.deep_supervision import DeepSupervision, DeepSupervisionConfig
from attractor.train.loop import Callback, Objective, Report, TrainConfig, train
from attractor.train.progress import Progress

__all__ = [
    "Callback",
    "DeepSupervision",
    "DeepSupervisionConfig",
    "Objective",
    "Progress",
    "Report",
    "TrainConfig",
    "find_checkpoint",
    "load_model",
    "read_run",
    "save_checkpoint",
    "train",
]
