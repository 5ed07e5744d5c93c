"""AdamW, with weight decay on matrices only; and Muon for the matrices inside layers, where asked for."""

import re
from dataclasses import dataclass

import torch
from torch import nn

from attractor.config import require_positive
from attractor.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW's settings, and which parameters do not follow them.

    Attributes
    ----------
    lr, weight_decay, beta1, beta2, eps
        AdamW's.
    clip
        Bounds the norm of all gradients together.
    muon
        Pattern (``re.search``) of the names of matrices that Muon trains instead; empty: none.
    muon_lr, muon_momentum, muon_decay
        Its learning rate, momentum and weight decay.
    final_decay
        The share of all weight decay that is left at the end of a run; it changes linearly with the run's progress.
    slow
        Pattern of the names of parameters whose learning rate is multiplied by ``slow_factor``; empty: none.
    """

    lr: float = 3e-3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0
    muon_pattern: str = ""
    muon_lr: float = 8e-3
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.1
    final_weight_decay: float = 1.0
    slow_pattern: str = ""
    slow_factor: float = 0.5

    def __post_init__(self) -> None:
        require_positive(self, "lr", "clip", "eps", "muon_lr", "slow_factor")
        if min(self.weight_decay, self.muon_weight_decay, self.final_weight_decay) < 0 or not (
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1
        ):
            raise ConfigError(f"{self}: weight decays cannot be negative, and both betas must lie in [0, 1).")
        if not 0 <= self.muon_momentum < 1:
            raise ConfigError(f"OptimizerConfig(muon_momentum={self.muon_momentum}): must lie in [0, 1).")
        for name in ("muon_pattern", "slow_pattern"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ConfigError(
                    f"OptimizerConfig({name}={getattr(self, name)!r}): not a pattern ({error})."
                ) from error

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Return the optimisers of all parameters of ``model``. Each group's ``lr`` is what a schedule scales."""
        groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
        for name, p in model.named_parameters():
            if p.requires_grad:
                muon = bool(self.muon_pattern) and p.ndim == 2 and re.search(self.muon_pattern, name) is not None
                slow = bool(self.slow_pattern) and re.search(self.slow_pattern, name) is not None
                groups.setdefault((muon, slow, p.ndim >= 2), []).append(p)
        adamw, muons = [], []
        for (muon, slow, is_matrix), parameters in sorted(groups.items(), key=lambda item: item[0]):
            factor = self.slow_factor if slow else 1.0
            if muon:
                muons.append(
                    {"params": parameters, "lr": self.muon_lr * factor, "weight_decay": self.muon_weight_decay}
                )
            else:  # norms, gates and biases do not decay
                decay = self.weight_decay if is_matrix else 0.0
                adamw.append({"params": parameters, "lr": self.lr * factor, "weight_decay": decay})
        optimizers: list[torch.optim.Optimizer] = []
        if adamw:
            optimizers.append(torch.optim.AdamW(adamw, betas=(self.beta1, self.beta2), eps=self.eps))
        if muons:
            optimizers.append(torch.optim.Muon(muons, momentum=self.muon_momentum))
        return optimizers
