"""HRM, the hierarchical reasoning model (arXiv:2506.21734), as in its authors' code.

One evaluation of its update makes ``L_cycles`` steps of the low network, ``z_L ← L(z_L + z_H + x)``, and then one step
of the high network, ``z_H ← H(z_H + z_L)``; the answer is decoded from ``z_H``. A segment is ``H_cycles`` evaluations.
Gradients flow only through the last step of each network: the one-step gradient of a fixed point, without a solve.

The authors train halting by Q-learning, with one output to halt and one to continue. Both have weights here, but only
the output to halt is used.
"""

from collections.abc import Callable
from dataclasses import field

import torch
from torch import Tensor

from attractor.config import config_class, require_whole
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig
from attractor.nn import GridNetwork, GridNetworkConfig
from attractor.nn.grid import HaltingHead, ScaledEmbedding, lecun_linear, swiglu_hidden, truncated_normal_


@config_class
class HRMConfig(ReasonerConfig):
    """Settings of HRM; ``evaluations_per_segment`` is its ``H_cycles``.

    Attributes
    ----------
    network
        Each of the two networks.
    num_latent
        Steps of the low network in one evaluation, ``L_cycles``. Only the last carries gradients.
    """

    network: GridNetworkConfig = field(
        default_factory=lambda: GridNetworkConfig(num_layers=4, mixing="attention", grid_positions=False)
    )
    num_latent: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, 1, "num_latent")

    def build(self) -> "HRM":
        return HRM(self)


class HRM(Reasoner):
    """The state is ``[z_H, z_L]``, (B, height, W, 2 D)."""

    config: HRMConfig
    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: HRMConfig) -> None:
        super().__init__(config)
        width = config.network.width
        self.embedding = ScaledEmbedding(config.num_symbols, width)
        self.H_level, self.L_level = GridNetwork(config.network), GridNetwork(config.network)
        self.lm_head = lecun_linear(width, config.num_classes)
        self.q_head = HaltingHead(width)
        for name in ("H_init", "L_init"):  # random constants, not trained
            self.register_buffer(name, truncated_normal_(torch.empty(width), 1.0))

    def init_state(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([self.H_init, self.L_init]).expand(*questions.shape, -1)

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

    def decode(self, state: Tensor) -> tuple[Tensor, Tensor]:
        answer = state[..., : self.config.network.width]
        return self.lm_head(answer), self.q_head(answer)


def hrm_27m() -> HRMConfig:
    """Return the published model."""
    network = GridNetworkConfig(
        width=512, num_layers=4, mixing="attention", hidden=swiglu_hidden(512), num_heads=8, grid_positions=False
    )
    return HRMConfig(network=network)


def hrm_tiny(size: int = 9) -> HRMConfig:
    """Return a small model for CPUs: width 128, two layers per network, Sudokus of ``size`` × ``size``."""
    network = GridNetworkConfig(mixing="attention", grid_positions=False)
    return HRMConfig(num_symbols=size + 1, num_classes=size + 1, network=network)
