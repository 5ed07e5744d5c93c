"""TRM, the tiny recursive model (Less is More, arXiv:2510.04871), as in its authors' code.

One evaluation of its update makes ``L_cycles`` latent steps, ``z ← net(z + y + x)``, and then one answer step,
``y ← net(y + z)``, with the same small network. A segment is ``H_cycles`` evaluations, and only the last carries
gradients. Segments carry the state over, detached. Every trajectory starts from the same constant vectors.
"""

from collections.abc import Callable
from dataclasses import field

import torch
from torch import Tensor

from attractor.config import config_class
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import HaltingHead, ScaledEmbedding, lecun_linear, swiglu_hidden, truncated_normal_


@config_class
class TRMConfig(ReasonerConfig):
    """``evaluations_per_segment`` is TRM's ``H_cycles``, and ``update.num_latent`` its ``L_cycles``."""

    update: TRMUpdateConfig = field(default_factory=lambda: TRMUpdateConfig(network=GridNetworkConfig(), num_latent=6))
    evaluations_per_segment: int = 3

    def build(self) -> "TRM":
        return TRM(self)


class TRM(Reasoner):
    """The state is ``[y, z]``, (B, height, W, 2 D)."""

    config: TRMConfig
    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: TRMConfig) -> None:
        super().__init__(config)
        width = config.update.width
        self.embedding = ScaledEmbedding(config.num_symbols, width)
        self.update = config.update.build()
        self.lm_head = lecun_linear(width, config.num_classes)
        self.q_head = HaltingHead(width)
        for name in ("H_init", "L_init"):  # random constants, not trained
            self.register_buffer(name, truncated_normal_(torch.empty(width), 1.0))

    def init_state(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([self.H_init, self.L_init]).expand(*questions.shape, -1)

    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        x = self.embedding(questions)
        return lambda state: self.update(state, x).to(state.dtype)

    def decode(self, state: Tensor) -> tuple[Tensor, Tensor]:
        answer = state[..., : self.config.update.width]
        return self.lm_head(answer), self.q_head(answer)


def trm_5m() -> TRMConfig:
    """Return the published model for 9 × 9 Sudoku, an MLP across cells, without its 16 puzzle-identifier cells."""
    network = GridNetworkConfig(width=512, hidden=swiglu_hidden(512), cell_hidden=swiglu_hidden(81), num_cells=81)
    return TRMConfig(update=TRMUpdateConfig(network=network, num_latent=6))


def trm_7m() -> TRMConfig:
    """Return the published model with attention, with its settings for Sudoku."""
    network = GridNetworkConfig(
        width=512, mixing="attention", hidden=swiglu_hidden(512), num_heads=8, grid_positions=False
    )
    return TRMConfig(update=TRMUpdateConfig(network=network, num_latent=6))


def trm_tiny(size: int = 9) -> TRMConfig:
    """Return a small model for CPUs: width 128, Sudokus of ``size`` × ``size``."""
    return TRMConfig(
        num_symbols=size + 1,
        num_classes=size + 1,
        update=TRMUpdateConfig(network=GridNetworkConfig(num_cells=size**2), num_latent=3),
        evaluations_per_segment=2,
    )
