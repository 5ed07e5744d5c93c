"""The plain Transformer: every layer its own weights, each used once. What recursion is compared with.

It is the direct prediction of HRM's paper (arXiv:2506.21734): layers, embedding and heads are those of HRM and TRM, so that only
the iteration differs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, Work
from attractor.nn import GridNetwork, GridNetworkConfig
from attractor.nn.grid import CellEmbedding, HaltingHead, linear, swiglu_hidden


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ReasonerConfig):
    """``cells`` are all its layers; ``halting`` says whether a head judges, from the first cell, if the answer is right."""

    cells: GridNetworkConfig = field(
        default_factory=lambda: GridNetworkConfig(num_layers=8, mixing="attention", grid_positions=False)
    )
    halting: bool = False
    evaluations_per_segment: int = 1

    def build(self) -> "TransformerReasoner":
        return TransformerReasoner(self)


class TransformerReasoner(Reasoner):
    """One evaluation is the whole answer. The state, (B, height, W, D), is what was computed last and influences nothing.

    So a second evaluation changes nothing, and its residual is zero.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.config, width = config, config.cells.width
        self.embedding = CellEmbedding(config.num_symbols, width)
        self.net = GridNetwork(config.cells)
        self.lm_head = linear(width, config.num_classes)
        if config.halting:
            self.q_head = HaltingHead(width)

    def start(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # As the questions are, not as the weights: those may be divided among processes.
        return questions.new_zeros(*questions.shape, self.config.cells.width, dtype=self.lm_head.weight.dtype)

    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        grid, x = questions.shape[1:], self.embedding(questions).flatten(1, 2)
        angles = self.net.angles(grid, x)
        return lambda state: self.net(x, torch.zeros_like(x), grid, angles).view(state.shape).to(state.dtype)

    def read(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.lm_head(state), self.q_head(state) if self.config.halting else None

    def work(self, num_cells: int) -> Work:
        evaluation = self.net.flops(num_cells)
        judging = self.q_head.weight.numel() if self.config.halting else 0
        reading = 2.0 * (num_cells * self.lm_head.weight.numel() + judging)
        return Work(evaluation=evaluation, differentiated=evaluation, reading=reading)


def transformer_27m() -> TransformerConfig:
    """Return one of HRM's size and layers: eight of width 512."""
    cells = GridNetworkConfig(
        width=512, num_layers=8, mixing="attention", hidden=swiglu_hidden(512), num_heads=8, grid_positions=False
    )
    return TransformerConfig(cells=cells)


def transformer_tiny(size: int = 9) -> TransformerConfig:
    """Return one of width 128 and four layers, as many as :func:`hrm_tiny`, for Sudokus of ``size`` × ``size``."""
    cells = GridNetworkConfig(num_layers=4, mixing="attention", grid_positions=False)
    return TransformerConfig(num_symbols=size + 1, num_classes=size + 1, cells=cells)
