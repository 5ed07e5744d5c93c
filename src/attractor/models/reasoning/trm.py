"""TRM, the tiny recursive model (Less is More, arXiv:2510.04871), as its authors have it.

One small network does two things: ``L_cycles`` times the reasoning, ``z ← net(z + y + x)``, then once the
answer, ``y ← net(y + z)``. That is one evaluation of its update. A segment is ``H_cycles`` of them, and only the last carries
gradients; between segments the state is carried over, detached. Every trajectory starts from the same fixed vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, Work
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import CellEmbedding, HaltingHead, linear, swiglu_hidden, truncated_normal_


@dataclass(frozen=True, kw_only=True)
class TRMConfig(ReasonerConfig):
    """``segment`` is TRM's ``H_cycles``, and ``update.num_latent`` its ``L_cycles``."""

    update: TRMUpdateConfig = field(default_factory=lambda: TRMUpdateConfig(cells=GridNetworkConfig(), num_latent=6))
    evaluations_per_segment: int = 3

    def build(self) -> "TRM":
        return TRM(self)


class TRM(Reasoner):
    """The state is ``[y, z]``, (B, height, W, 2 D)."""

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: TRMConfig) -> None:
        super().__init__(config)
        self.config, width = config, config.update.width
        self.embedding = CellEmbedding(config.num_symbols, width)
        self.update = config.update.build()
        self.lm_head = linear(width, config.num_classes)
        self.q_head = HaltingHead(width)
        for name in ("H_init", "L_init"):  # drawn once, never learnt
            self.register_buffer(name, truncated_normal_(torch.empty(width), 1.0))

    def start(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([self.H_init, self.L_init]).expand(*questions.shape, -1)

    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        x = self.embedding(questions)
        return lambda state: self.update(state, x).to(state.dtype)

    def read(self, state: Tensor) -> tuple[Tensor, Tensor]:
        answer = state[..., : self.config.update.width]
        return self.lm_head(answer), self.q_head(answer)

    def work(self, num_cells: int) -> Work:
        evaluation = self.update.flops(num_cells)
        reading = 2.0 * (num_cells * self.lm_head.weight.numel() + self.q_head.weight.numel())
        return Work(evaluation=evaluation, differentiated=evaluation, reading=reading)


def trm_5m() -> TRMConfig:
    """Return the published model for 9 × 9 Sudoku, an MLP across cells; less its 16 cells for a puzzle's name."""
    cells = GridNetworkConfig(width=512, hidden=swiglu_hidden(512), cell_hidden=swiglu_hidden(81), num_cells=81)
    return TRMConfig(update=TRMUpdateConfig(cells=cells, num_latent=6))


def trm_7m() -> TRMConfig:
    """Return the published model with attention, in its setting for Sudoku."""
    cells = GridNetworkConfig(
        width=512, mixing="attention", hidden=swiglu_hidden(512), num_heads=8, grid_positions=False
    )
    return TRMConfig(update=TRMUpdateConfig(cells=cells, num_latent=6))


def trm_tiny(size: int = 9) -> TRMConfig:
    """Return one of width 128 for Sudokus of ``size`` × ``size``, for processors."""
    cells = GridNetworkConfig(num_cells=size**2)
    return TRMConfig(
        num_symbols=size + 1,
        num_classes=size + 1,
        update=TRMUpdateConfig(cells=cells, num_latent=3),
        evaluations_per_segment=2,
    )
