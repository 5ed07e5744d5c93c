"""Optimisers and learning-rate schedules. They know no models."""

from attractor.optim.optimizer import OptimizerConfig
from attractor.optim.schedule import trapezoid

__all__ = ["OptimizerConfig", "trapezoid"]
