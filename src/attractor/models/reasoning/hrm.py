"""HRM, the hierarchical reasoning model (arXiv:2506.21734), as its authors have it.

Two networks: the low one is updated ``L_cycles`` times, ``z_L ← L(z_L + z_H + x)``, then the high one once, ``z_H ← H(z_H + z_L)``,
from which the answer is read. That is one evaluation of its update; a segment is ``H_cycles`` of them. Gradients flow through
the very last update of either network alone: the one-step gradient of a fixed point that is assumed, not sought.

Theirs learns when to halt by Q-learning, to halt against to continue. Both weights are here, but of the head's two outputs only
the first, to halt, is used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attractor.config import require_whole
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, Work
from attractor.nn import GridNetwork, GridNetworkConfig
from attractor.nn.grid import CellEmbedding, HaltingHead, linear, swiglu_hidden, truncated_normal_


@dataclass(frozen=True, kw_only=True)
class HRMConfig(ReasonerConfig):
    """What is built and how it is iterated; ``segment`` is HRM's ``H_cycles``.

    Attributes
    ----------
    cells
        Each of the two networks.
    num_latent
        Updates of the low network before one of the high, ``L_cycles``. Only the last carries gradients.
    """

    cells: GridNetworkConfig = field(
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

    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: HRMConfig) -> None:
        super().__init__(config)
        self.config, width = config, config.cells.width
        self.embedding = CellEmbedding(config.num_symbols, width)
        self.H_level, self.L_level = GridNetwork(config.cells), GridNetwork(config.cells)
        self.lm_head = linear(width, config.num_classes)
        self.q_head = HaltingHead(width)
        for name in ("H_init", "L_init"):  # drawn once, never learnt
            self.register_buffer(name, truncated_normal_(torch.empty(width), 1.0))

    def start(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([self.H_init, self.L_init]).expand(*questions.shape, -1)

    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        grid, x = questions.shape[1:], self.embedding(questions).flatten(1, 2)
        angles = self.L_level.angles(grid, x)

        def update(state: Tensor) -> Tensor:
            # Contiguous, as what the layers return is: compiled networks then see tensors of one kind.
            high, low = (part.contiguous() for part in state.flatten(1, 2).chunk(2, dim=-1))
            with torch.no_grad():
                for _ in range(self.config.num_latent - 1):
                    low = self.L_level(low, high + x, grid, angles)
            low = self.L_level(low, high + x, grid, angles)
            high = self.H_level(high, low, grid, angles)
            return torch.cat([high, low], dim=-1).view(state.shape).to(state.dtype)

        return update

    def read(self, state: Tensor) -> tuple[Tensor, Tensor]:
        answer = state[..., : self.config.cells.width]
        return self.lm_head(answer), self.q_head(answer)

    def work(self, num_cells: int) -> Work:
        low, high = self.L_level.flops(num_cells), self.H_level.flops(num_cells)
        reading = 2.0 * (num_cells * self.lm_head.weight.numel() + self.q_head.weight.numel())
        return Work(evaluation=self.config.num_latent * low + high, differentiated=low + high, reading=reading)


def hrm_27m() -> HRMConfig:
    """Return the published model."""
    cells = GridNetworkConfig(
        width=512, num_layers=4, mixing="attention", hidden=swiglu_hidden(512), num_heads=8, grid_positions=False
    )
    return HRMConfig(cells=cells)


def hrm_tiny(size: int = 9) -> HRMConfig:
    """Return one of width 128 with two layers a network for Sudokus of ``size`` × ``size``, for processors."""
    cells = GridNetworkConfig(mixing="attention", grid_positions=False)
    return HRMConfig(num_symbols=size + 1, num_classes=size + 1, cells=cells)
