"""The hierarchical reasoning model (arXiv:2506.21734), as in its authors' code."""

from dataclasses import field

import torch
from torch import Tensor

from attractor.config import config_class, require_whole
from attractor.models.reasoning.reasoner import Draw
from attractor.models.reasoning.two_part import TwoPartConfig, TwoPartReasoner, with_latent_noise
from attractor.nn import GridNetwork, GridNetworkConfig


@config_class
class HRMConfig(TwoPartConfig):
    """Settings of HRM; ``evaluations_per_segment`` is its ``H_cycles``. ``network`` is each of the two networks.

    Attributes
    ----------
    num_latent
        Steps of the low network per evaluation (``L_cycles``).
    """

    network: GridNetworkConfig = field(
        default_factory=lambda: GridNetworkConfig(num_layers=4, mixing="attention", grid_positions=False)
    )
    num_latent: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, 1, "num_latent")

    @property
    def width(self) -> int:
        return self.network.width

    def build(self) -> "HRM":
        return HRM(self)


class HRM(TwoPartReasoner):
    """The hierarchical reasoning model. The state is ``[z_H, z_L]``.

    One evaluation makes ``L_cycles`` steps of the low network, ``z_L ← L(z_L + z_H + x)``, then one step of the high
    network, ``z_H ← H(z_H + z_L)``. Gradients flow through the last step of each network only. It halts where its
    output to halt is above its output to continue. The authors train both by Q-learning; here their difference is
    trained to be the logit that the answer is right.
    """

    config: HRMConfig
    compares_halting = True

    def add_networks(self) -> None:
        self.H_level, self.L_level = GridNetwork(self.config.network), GridNetwork(self.config.network)

    def evaluate_cells(self, state: Tensor, x: Tensor, draw: Draw) -> Tensor:
        grid, angles = x.shape[1:-1], self.L_level.angles(x.shape[1:-1], x)
        # Contiguous like the networks' outputs, so that compiled networks see one memory layout.
        high, low = (part.contiguous() for part in with_latent_noise(state, draw).flatten(1, -2).chunk(2, dim=-1))
        x = x.flatten(1, -2)
        with torch.no_grad():
            for _ in range(self.config.num_latent - 1):
                low = self.L_level(low, high + x, grid, angles)
        low = self.L_level(low, high + x, grid, angles)
        high = self.H_level(high, low, grid, angles)
        return torch.cat([high, low], dim=-1).view(state.shape)
