"""A weight-tied convolutional update for puzzles on a grid.

One evaluation sees only a cell's neighbourhood and no absolute positions, so weights learned on small grids apply to
large ones; iterating carries information over the distance. The last operation is a norm, which bounds the state at
any depth (as in TRM and EqR).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from attractor.config import config_class, require_whole
from attractor.errors import ConfigError
from attractor.nn.compiled import CompiledBlock


@config_class
class ConvolutionUpdateConfig:
    """Settings of the update by two convolutions.

    Attributes
    ----------
    width
        Channels of the state per cell.
    hidden
        Channels between both convolutions; None: ``width``.
    kernel, outer_kernel
        The sides of the first and the second convolution, odd numbers; None: ``kernel``. With 3 and 1, information
        travels one cell in an evaluation.
    """

    width: int = 32
    hidden: int | None = None
    kernel: int = 3
    outer_kernel: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "kernel", "outer_kernel"):
            if getattr(self, name) is not None:
                require_whole(self, 1, name)
        for name in ("kernel", "outer_kernel"):
            if (getattr(self, name) or 1) % 2 == 0:
                raise ConfigError(f"ConvolutionUpdateConfig({name}={getattr(self, name)}): give an odd number.")

    @property
    def state_width(self) -> int:
        """Channels of the state per cell."""
        return self.width

    def build(self) -> "ConvolutionUpdate":
        return ConvolutionUpdate(self)


class ConvolutionUpdate(CompiledBlock):
    """``(y, x) -> norm(y + conv(gelu(conv(y + x))))``, all of shape (B, height, W, D)."""

    def __init__(self, config: ConvolutionUpdateConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden or config.width
        self.inner = nn.Conv2d(width, hidden, config.kernel, padding="same")
        self.outer = nn.Conv2d(hidden, width, config.outer_kernel or config.kernel, padding="same")
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        # A contiguous (B, height, W, D) viewed as (B, D, height, W) is channels-last: permuting copies nothing.
        h = (y + x).permute(0, 3, 1, 2)
        h = self.outer(F.gelu(self.inner(h)))
        return self.norm(y + h.permute(0, 2, 3, 1))
