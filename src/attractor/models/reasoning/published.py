"""Published reasoners, as in their authors' code: HRM, TRM and the Transformer baseline.

All three share layers, embedding and heads, so that they differ only in the iteration. Parameter names are those of the
published weights.
"""

from collections.abc import Callable
from dataclasses import field

import torch
from torch import Tensor

from attractor.config import config_class, require_whole
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig
from attractor.nn import GridNetwork, GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import HaltingHead, ScaledEmbedding, lecun_linear, truncated_normal_


def _attention(num_layers: int) -> GridNetworkConfig:
    return GridNetworkConfig(num_layers=num_layers, mixing="attention", grid_positions=False)


@config_class
class HRMConfig(ReasonerConfig):
    """Settings of HRM; ``evaluations_per_segment`` is its ``H_cycles``. ``network`` is each of the two networks.

    Attributes
    ----------
    num_latent
        Steps of the low network per evaluation (``L_cycles``).
    """

    network: GridNetworkConfig = field(default_factory=lambda: _attention(4))
    num_latent: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, 1, "num_latent")

    def build(self) -> "HRM":
        return HRM(self)


@config_class
class TRMConfig(ReasonerConfig):
    """``evaluations_per_segment`` is TRM's ``H_cycles``, and ``update.num_latent`` its ``L_cycles``."""

    update: TRMUpdateConfig = field(default_factory=lambda: TRMUpdateConfig(network=GridNetworkConfig(), num_latent=6))
    evaluations_per_segment: int = 3

    def build(self) -> "TRM":
        return TRM(self)


@config_class
class TransformerConfig(ReasonerConfig):
    """Settings of a Transformer without a state; ``network`` is all of its layers.

    Attributes
    ----------
    halting
        Whether a head predicts from the first cell if the answer is right.
    """

    network: GridNetworkConfig = field(default_factory=lambda: _attention(8))
    halting: bool = False
    evaluations_per_segment: int = 1

    def build(self) -> "TransformerReasoner":
        return TransformerReasoner(self)


class _TwoPartReasoner(Reasoner):
    """The state is the answer and a latent, (B, height, W, 2 D). Every solve starts from the same constant vectors."""

    H_init: Tensor
    L_init: Tensor

    def _add_heads(self, width: int) -> None:
        self.width = width
        self.lm_head = lecun_linear(width, self.config.num_classes)
        self.q_head = HaltingHead(width)
        for name in ("H_init", "L_init"):  # random, not trained
            self.register_buffer(name, truncated_normal_(torch.empty(width), 1.0))

    def init_state(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([self.H_init, self.L_init]).expand(*questions.shape, -1)

    def decode(self, state: Tensor) -> tuple[Tensor, Tensor]:
        answer = state[..., : self.width]
        return self.lm_head(answer), self.q_head(answer)


class HRM(_TwoPartReasoner):
    """The hierarchical reasoning model (arXiv:2506.21734). The state is ``[z_H, z_L]``.

    One evaluation makes ``L_cycles`` steps of the low network, ``z_L ← L(z_L + z_H + x)``, then one step of the high
    network, ``z_H ← H(z_H + z_L)``. Gradients flow through the last step of each network only. The authors train
    halting by Q-learning, with one output to halt and one to continue; only the output to halt is used here.
    """

    config: HRMConfig

    def __init__(self, config: HRMConfig) -> None:
        super().__init__(config)
        self.embedding = ScaledEmbedding(config.num_symbols, config.network.width)
        self.H_level, self.L_level = GridNetwork(config.network), GridNetwork(config.network)
        self._add_heads(config.network.width)

    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        grid, x = questions.shape[1:], self.embedding(questions).flatten(1, 2)
        angles = self.L_level.angles(grid, x)

        def update(state: Tensor) -> Tensor:
            # Contiguous like the networks' outputs, so that compiled networks see one memory layout.
            high, low = (part.contiguous() for part in state.flatten(1, 2).chunk(2, dim=-1))
            with torch.no_grad():
                for _ in range(self.config.num_latent - 1):
                    low = self.L_level(low, high + x, grid, angles)
            low = self.L_level(low, high + x, grid, angles)
            high = self.H_level(high, low, grid, angles)
            return torch.cat([high, low], dim=-1).view(state.shape).to(state.dtype)

        return update


class TRM(_TwoPartReasoner):
    """The tiny recursive model (Less is More, arXiv:2510.04871). The state is ``[y, z]``.

    One evaluation makes ``L_cycles`` latent steps, ``z ← net(z + y + x)``, then one answer step, ``y ← net(y + z)``,
    with the same small network. Of the ``H_cycles`` evaluations of a segment only the last carries gradients.
    """

    config: TRMConfig

    def __init__(self, config: TRMConfig) -> None:
        super().__init__(config)
        self.embedding = ScaledEmbedding(config.num_symbols, config.update.width)
        self.update = config.update.build()
        self._add_heads(config.update.width)

    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        x = self.embedding(questions)
        return lambda state: self.update(state, x).to(state.dtype)


class TransformerReasoner(Reasoner):
    """The direct prediction of the HRM paper: every layer has its own weights and is used once.

    The update ignores its state and returns the last layer's output (B, height, W, D), so the first evaluation is the
    answer, and the second finds a residual of zero.
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
