"""AdamW, with weight decay on matrices only."""

from dataclasses import dataclass

import torch
from torch import nn

from attractor.config import require_positive
from attractor.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW's settings; ``clip`` bounds the norm of all gradients together."""

    lr: float = 3e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "lr", "clip")
        if self.weight_decay < 0 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"{self}: weight_decay cannot be negative, and both betas must lie in [0, 1).")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},  # norms and biases
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=(self.beta1, self.beta2))
