"""Objectives: from a batch and a model to a loss and metrics. They do not know the training loop."""

from attractor.objectives.batch import split_batch
from attractor.objectives.deep_supervision import IGNORED, DeepSupervision, DeepSupervisionConfig
from attractor.objectives.next_token import NextToken, NextTokenConfig

__all__ = [
    "IGNORED",
    "DeepSupervision",
    "DeepSupervisionConfig",
    "NextToken",
    "NextTokenConfig",
    "split_batch",
]
