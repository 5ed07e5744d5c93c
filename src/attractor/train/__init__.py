"""The one training loop, its checkpoints and its callbacks. Knows no concrete model."""

from attractor.train.checkpoint import Checkpoints, amend, find_checkpoint, load_model, read_run, seal, verify_weights
from attractor.train.deep_supervision import DeepSupervision, DeepSupervisionConfig
from attractor.train.device import peak_flops
from attractor.train.loop import PRECISIONS, Callback, Objective, Report, TrainConfig, train
from attractor.train.next_token import NextToken, NextTokenConfig
from attractor.train.pause import Pause
from attractor.train.progress import Progress
from attractor.train.trackers import tracker

__all__ = [
    "PRECISIONS",
    "Callback",
    "Checkpoints",
    "DeepSupervision",
    "DeepSupervisionConfig",
    "NextToken",
    "NextTokenConfig",
    "Objective",
    "Pause",
    "Progress",
    "Report",
    "TrainConfig",
    "amend",
    "find_checkpoint",
    "load_model",
    "peak_flops",
    "read_run",
    "seal",
    "tracker",
    "train",
    "verify_weights",
]
