"""An update for Sudokus that commutes with all their symmetries, so that training needs no augmentation.

The state holds one vector for each digit that a cell can have. One evaluation sees the vector itself and its means over
the row, the column, the box, and the digits of the cell. Renaming digits, permuting rows of a band, or bands, columns
likewise, and transposing with square boxes change the result in the same way as the question.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.config import config_class, require_whole
from attractor.errors import DataError
from attractor.nn.compiled import CompiledBlock
from attractor.nn.grid import lecun_linear, rms_norm

NEVER = -1e4  # the logit of a blank in an answer


@config_class
class SymmetricUpdateConfig:
    """Settings of the update for Sudokus; grids have ``box_height * box_width`` digits.

    Attributes
    ----------
    width
        Channels of the state per cell and digit.
    hidden
        Hidden width of the MLP.
    num_layers
        Layers of one evaluation.
    box_height, box_width
        Rows and columns of a box.
    """

    width: int = 32
    hidden: int = 96
    num_layers: int = 1
    box_height: int = 3
    box_width: int = 3

    def __post_init__(self) -> None:
        require_whole(self, 1, "width", "hidden", "num_layers", "box_height", "box_width")

    @property
    def num_digits(self) -> int:
        """Digits of a cell, and cells of a row."""
        return self.box_height * self.box_width

    @property
    def state_width(self) -> int:
        """Channels of the state per cell."""
        return self.num_digits * self.width

    def build(self) -> "SymmetricUpdate":
        return SymmetricUpdate(self)


class SymmetricUpdate(CompiledBlock):
    """``layers(y + x)`` for a state (B, n, n, n D) of n digits and an embedded question (B, n, n, n, D)."""

    def __init__(self, config: SymmetricUpdateConfig) -> None:
        super().__init__()
        self.num_digits = config.num_digits
        self.layers = nn.ModuleList(SymmetricLayer(config) for _ in range(config.num_layers))

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        n = self.num_digits
        if x.shape[1:-1] != (n, n, n):
            raise DataError(
                f"a grid of {x.shape[1]} × {x.shape[2]} cells: this model is built for Sudokus of {n} digits; give such grids."
            )
        h = y.view(x.shape) + x
        for layer in self.layers:
            h = layer(h)
        return h.view(y.shape)


class SymmetricLayer(nn.Module):
    """``h ← norm(h + down(silu(gate) * up))`` for (B, n, n, n, D).

    Gate and up are the sum of linear maps of ``h`` and of its means over lines, box and cell. The map of rows is that of
    columns. Means are mapped before they are expanded to all cells, which costs a ninth.
    """

    def __init__(self, config: SymmetricUpdateConfig) -> None:
        super().__init__()
        self.box = config.box_height, config.box_width
        self.own, self.line, self.box_mean, self.cell = (
            lecun_linear(config.width, 2 * config.hidden) for _ in range(4)
        )
        self.down_proj = lecun_linear(config.hidden, config.width)

    def forward(self, h: Tensor) -> Tensor:
        height, width = self.box
        lines = self.line(h.mean(dim=1))[:, None] + self.line(h.mean(dim=2))[:, :, None]  # (B, n, n, n, 2 hidden)
        boxes = self.box_mean(h.unflatten(2, (-1, width)).unflatten(1, (-1, height)).mean(dim=(2, 4)))
        mixed = self.own(h) + lines + self.cell(h.mean(dim=3))[:, :, :, None]
        mixed = mixed.unflatten(2, (-1, width)).unflatten(1, (-1, height)) + boxes[:, :, None, :, None]
        gate, up = mixed.flatten(3, 4).flatten(1, 2).chunk(2, dim=-1)
        return rms_norm(h + self.down_proj(F.silu(gate) * up))


class CandidateEmbedding(nn.Embedding):
    """A question (B, n, n) to a vector for each cell and digit (B, n, n, n, D): blank, the clue, or another digit."""

    def __init__(self, width: int) -> None:
        super().__init__(3, width)

    def forward(self, questions: Tensor) -> Tensor:
        clue = questions[..., None]
        digits = torch.arange(1, questions.shape[-1] + 1, device=questions.device)
        return super().forward(torch.where(clue == 0, 0, torch.where(clue == digits, 1, 2)))


class CandidateHead(nn.Linear):
    """A state (B, n, n, n D) to logits (B, n, n, 1 + n) of a blank, which is never an answer, and of each digit."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, state: Tensor) -> Tensor:
        logits = super().forward(state.unflatten(-1, (-1, self.in_features)))[..., 0]
        return F.pad(logits, (1, 0), value=NEVER)
