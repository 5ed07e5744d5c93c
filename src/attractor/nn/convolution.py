"""A weight-tied convolutional update for puzzles on a grid.

One evaluation sees only a cell's neighbourhood and no absolute positions, so weights learned on small grids apply to
large ones; iterating carries information over the distance. The mean with a bounded candidate bounds the state at any
depth.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.config import config_class, require_whole
from attractor.nn.compiled import CompiledBlock


@config_class
class GatedConvolutionUpdateConfig:
    """Settings of the gated update, in which a cell sees itself and its four neighbours.

    Attributes
    ----------
    width
        Channels of the state per cell.
    hidden
        Channels between the convolution and the gate.
    """

    width: int = 32
    hidden: int = 64

    def __post_init__(self) -> None:
        require_whole(self, 1, "width", "hidden")

    @property
    def state_width(self) -> int:
        """Channels of the state per cell."""
        return self.width

    def build(self) -> "GatedConvolutionUpdate":
        return GatedConvolutionUpdate(self)


class GatedConvolutionUpdate(CompiledBlock):
    """``(y, x) -> (1 - u) y + u tanh(c)``, all of shape (B, height, W, D), with ``u`` in (0, 1) and ``c`` from ``y + x``.

    Information moves by one step to the left, right, up or down in an evaluation, as in breadth-first search. A gate that is
    closed keeps the state of its cell exactly, so that a cell can be updated once and then converge (as in GRUs,
    arXiv:1406.1078).
    """

    def __init__(self, config: GatedConvolutionUpdateConfig) -> None:
        super().__init__()
        self.vertical = nn.Conv2d(config.width, config.hidden, (3, 1), padding=(1, 0))
        self.horizontal = nn.Conv2d(config.width, config.hidden, (1, 3), padding=(0, 1))
        self.outer = nn.Linear(config.hidden, 2 * config.width)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        h = (y + x).permute(0, 3, 1, 2)
        h = F.gelu(self.vertical(h) + self.horizontal(h)).permute(0, 2, 3, 1)
        gate, candidate = self.outer(h).chunk(2, dim=-1)
        return torch.lerp(y, candidate.tanh().to(y.dtype), gate.sigmoid().to(y.dtype))
