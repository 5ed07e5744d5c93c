"""The Transformer baseline: every layer has its own weights and is used once.

It is the direct prediction of the HRM paper (arXiv:2506.21734). Layers, embedding and heads are those of HRM and TRM,
so the only difference is the iteration.
"""

from collections.abc import Callable
from dataclasses import field

import torch
from torch import Tensor

from attractor.config import config_class
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig
from attractor.nn import GridNetwork, GridNetworkConfig
from attractor.nn.grid import HaltingHead, ScaledEmbedding, lecun_linear, swiglu_hidden


@config_class
class TransformerConfig(ReasonerConfig):
    """``network`` is all layers; ``halting`` adds a head that predicts from the first cell if the answer is right."""

    network: GridNetworkConfig = field(
        default_factory=lambda: GridNetworkConfig(num_layers=8, mixing="attention", grid_positions=False)
    )
    halting: bool = False
    evaluations_per_segment: int = 1

    def build(self) -> "TransformerReasoner":
        return TransformerReasoner(self)


class TransformerReasoner(Reasoner):
    """The update ignores its state and returns the last layer's output (B, height, W, D): one evaluation is the answer.

    A second evaluation therefore changes nothing, and its residual is zero.
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        width = config.network.width
        self.embedding = ScaledEmbedding(config.num_symbols, width)
        self.net = GridNetwork(config.network)
        self.lm_head = lecun_linear(width, config.num_classes)
        if config.halting:
            self.q_head = HaltingHead(width)

    def init_state(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        # Made from the questions, because FSDP may shard the weights.
        return questions.new_zeros(*questions.shape, self.config.network.width, dtype=self.lm_head.weight.dtype)

    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        grid, x = questions.shape[1:], self.embedding(questions).flatten(1, 2)
        angles = self.net.angles(grid, x)
        return lambda state: self.net(x, torch.zeros_like(x), grid, angles).view(state.shape).to(state.dtype)

    def decode(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.lm_head(state), self.q_head(state) if self.config.halting else None


def transformer_27m() -> TransformerConfig:
    """Return a model of HRM's size: eight layers of width 512."""
    network = GridNetworkConfig(
        width=512, num_layers=8, mixing="attention", hidden=swiglu_hidden(512), num_heads=8, grid_positions=False
    )
    return TransformerConfig(network=network)


def transformer_tiny(size: int = 9) -> TransformerConfig:
    """Return a small model for CPUs: width 128, four layers as in :func:`hrm_tiny`, Sudokus of ``size`` × ``size``."""
    network = GridNetworkConfig(num_layers=4, mixing="attention", grid_positions=False)
    return TransformerConfig(num_symbols=size + 1, num_classes=size + 1, network=network)
