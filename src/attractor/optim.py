"""Optimisers, the learning-rate schedule and frozen parameters.

AdamW has weight decay on matrices only; Muon is for other matrices, and SignSGD for embeddings of names.
"""

import re
from typing import Any

import torch
from torch import nn

from attractor.config import config_class, require_positive
from attractor.errors import ConfigError


@config_class
class OptimizerConfig:
    """Settings of AdamW, and which parameters have others.

    Attributes
    ----------
    lr, weight_decay, beta1, beta2, eps
        Settings of AdamW.
    clip
        The largest total norm of all gradients.
    muon_pattern
        Regular expression (``re.search``) for the names of the matrices that Muon trains instead of AdamW. Empty: none.
    muon_lr, muon_momentum, muon_weight_decay
        Settings of Muon.
    sign_pattern
        Regular expression for the names of the embeddings that :class:`SignSGD` trains. Empty: none.
    sign_lr, sign_weight_decay
        Settings of SignSGD.
    final_weight_decay
        Factor on all weight decays at the end of a run. It changes linearly from 1 with the run's progress.
    slow_pattern, slow_factor
        Regular expression for the names of parameters with ``slow_factor`` times the learning rate. Empty: none.
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
    sign_pattern: str = ""
    sign_lr: float = 1e-2
    sign_weight_decay: float = 0.1
    final_weight_decay: float = 1.0
    slow_pattern: str = ""
    slow_factor: float = 0.5

    def __post_init__(self) -> None:
        require_positive(self, "lr", "clip", "eps", "muon_lr", "sign_lr", "slow_factor")
        for name in ("weight_decay", "muon_weight_decay", "sign_weight_decay", "final_weight_decay"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"OptimizerConfig({name}={value!r}): give a number from 0 up.")
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ConfigError(f"OptimizerConfig({name}={value!r}): give a number in [0, 1).")
        require_patterns(self, "muon_pattern", "sign_pattern", "slow_pattern")

    def build(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """Return the optimisers of all trainable parameters of ``model``. A schedule scales each group's ``lr``."""
        groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
        embeddings: list[nn.Parameter] = []
        for name, p in model.named_parameters():
            if p.requires_grad and matches(self.sign_pattern, name):
                embeddings.append(p)
            elif p.requires_grad:
                is_muon = p.ndim == 2 and matches(self.muon_pattern, name)
                is_slow = matches(self.slow_pattern, name)
                groups.setdefault((is_muon, is_slow, p.ndim >= 2), []).append(p)
        adamw: list[dict[str, Any]] = []
        muon: list[dict[str, Any]] = []
        for (is_muon, is_slow, is_matrix), params in sorted(groups.items(), key=lambda item: item[0]):
            factor = self.slow_factor if is_slow else 1.0
            if is_muon:
                muon.append({"params": params, "lr": self.muon_lr * factor, "weight_decay": self.muon_weight_decay})
            else:  # norms, gates and biases have no weight decay
                weight_decay = self.weight_decay if is_matrix else 0.0
                adamw.append({"params": params, "lr": self.lr * factor, "weight_decay": weight_decay})
        optimizers: list[torch.optim.Optimizer] = []
        if adamw:
            optimizers.append(torch.optim.AdamW(adamw, betas=(self.beta1, self.beta2), eps=self.eps))
        if muon:
            optimizers.append(torch.optim.Muon(muon, momentum=self.muon_momentum))
        if embeddings:
            optimizers.append(SignSGD(embeddings, lr=self.sign_lr, weight_decay=self.sign_weight_decay))
        return optimizers


class SignSGD(torch.optim.Optimizer):
    """Steps of size ``lr`` by the sign of the gradient, for the rows of embeddings that a batch has used.

    HRM and TRM train the embeddings of puzzle names so: each name is rare, so that the moments of Adam would be those of
    steps without a gradient. Rows without a gradient stay, without weight decay too.
    """

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    used = (p.grad != 0).any(dim=-1, keepdim=True)
                    p.mul_(1 - group["lr"] * group["weight_decay"] * used).sub_(group["lr"] * p.grad.sign())


def require_patterns(owner: Any, *names: str) -> None:
    """Raise a ConfigError if a named attribute of ``owner`` is not a regular expression."""
    for name in names:
        try:
            re.compile(pattern := getattr(owner, name))
        except re.error as error:
            raise ConfigError(
                f"{type(owner).__name__}({name}={pattern!r}): not a valid regular expression ({error})."
            ) from error


def freeze(model: nn.Module, pattern: str) -> None:
    """Exclude the parameters with a name that matches ``pattern`` (``re.search``) from training; empty: none.

    A tied weight has several names. Raises ConfigError if no parameter matches, or all do.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    frozen = [p for name, p in named if matches(pattern, name)]
    if pattern and not frozen:
        names = ", ".join(name for name, _ in named[:2])
        raise ConfigError(f"train.freeze={pattern!r}: matches no parameter; their names are such as {names}.")
    for p in frozen:
        p.requires_grad_(False)
    if not any(p.requires_grad for _, p in named):
        raise ConfigError(f"train.freeze={pattern!r}: matches every parameter, so that nothing is trained.")


def matches(pattern: str, name: str) -> bool:
    """Return whether a regular expression is found in ``name``; the empty one in none."""
    return bool(pattern) and re.search(pattern, name) is not None


def trapezoid(progress: float, *, warmup_fraction: float, cooldown_fraction: float) -> float:
    """Return the factor on the learning rate at ``progress`` in [0, 1].

    It rises linearly from 0 to 1 in the first ``warmup_fraction`` of the run, stays at 1, and falls linearly to 0 in
    the last ``cooldown_fraction``.
    """
    rise = progress / warmup_fraction if progress < warmup_fraction else 1.0
    fall = (1 - progress) / cooldown_fraction if progress > 1 - cooldown_fraction else 1.0
    return max(0.0, min(rise, fall))
