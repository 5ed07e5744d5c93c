"""The Transformer baseline of the HRM paper (arXiv:2506.21734): a direct prediction without a state."""

from collections.abc import Callable
from dataclasses import field

import torch
from torch import Tensor

from attractor.config import config_class
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig
from attractor.nn import GridNetwork, GridNetworkConfig
from attractor.nn.grid import HaltingHead, ScaledEmbedding, lecun_linear


@config_class
class TransformerConfig(ReasonerConfig):
    """Settings of a Transformer without a state; ``network`` is all of its layers.

    Attributes
    ----------
    halting
        Whether a head predicts from the first cell if the answer is right.
    """

    network: GridNetworkConfig = field(
        default_factory=lambda: GridNetworkConfig(num_layers=8, mixing="attention", grid_positions=False)
    )
    halting: bool = False
    evaluations_per_segment: int = 1

    def build(self) -> "TransformerReasoner":
        return TransformerReasoner(self)


class TransformerReasoner(Reasoner):
    """The direct prediction of the HRM paper: every layer has its own weights and is used once.

    The update ignores its state and returns the last layer's output (B, height, W, D), so the first evaluation is the
    answer, and the second finds a residual of zero.
    """

    config: TransformerConfig
    noise_refusal = "it has no state"

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

    def make_update(self, questions: Tensor, noise: float | None = None) -> Callable[[Tensor], Tensor]:
        grid, x = questions.shape[1:], self.embedding(questions).flatten(1, 2)
        angles = self.net.angles(grid, x)
        return lambda state: self.net(x, torch.zeros_like(x), grid, angles).view(state.shape).to(state.dtype)

    def decode(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.lm_head(state), self.q_head(state) if self.config.halting else None
