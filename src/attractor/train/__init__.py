"""The one training loop, its checkpoints and its callbacks. Knows no concrete model."""

from attractor.train.checkpoint import Checkpoints, amend, find_checkpoint, load_model, read_run, seal, verify_weights
from attractor.train.config import PRECISIONS, Objective, TrainConfig
from attractor.train.deep_supervision import DeepSupervision, DeepSupervisionConfig
from attractor.train.device import peak_flops
from attractor.train.guard import GuardConfig
from attractor.train.log import Callback, Report
from attractor.train.loop import train
from attractor.train.next_token import NextToken, NextTokenConfig
from attractor.train.pause import Pause
from attractor.train.progress import Progress
from attractor.train.trackers import tracker
from attractor.train.world import World, joined, speaks

__all__ = [
    "PRECISIONS",
    "Callback",
    "Checkpoints",
    "DeepSupervision",
    "DeepSupervisionConfig",
    "GuardConfig",
    "NextToken",
    "NextTokenConfig",
    "Objective",
    "Pause",
    "Progress",
    "Report",
    "TrainConfig",
    "World",
    "amend",
    "find_checkpoint",
    "joined",
    "load_model",
    "peak_flops",
    "read_run",
    "seal",
    "speaks",
    "tracker",
    "train",
    "verify_weights",
]
