"""An update for Sudokus that commutes with all their symmetries, so that training needs no augmentation.

The state holds one vector for each digit that a cell can have. One evaluation sees the vector itself and its means over
the row, the column, the box, and the digits of the cell. Renaming digits, permuting rows of a band, or bands, columns
likewise, and transposing with square boxes change the result in the same way as the question.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.config import config_class, require_whole
from attractor.errors import DataError
from attractor.nn.grid import SwiGLU, rms_norm

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

    def units(self) -> Tensor:
        """Return the indices (3, n²) of each cell's row, column and box among the 3 n units."""
        n = self.num_digits
        row, column = torch.arange(n * n) // n, torch.arange(n * n) % n
        return torch.stack(
            [row, n + column, 2 * n + row // self.box_height * self.box_height + column // self.box_width]
        )

    def build(self) -> "SymmetricUpdate":
        return SymmetricUpdate(self)


class Candidates(NamedTuple):
    """The embedded question of :class:`SymmetricUpdate`.

    ``vectors`` (B, n, n, n, D) are embeddings of open digits, clues, and digits that a clue excludes. ``open`` (K,) are
    flat indices of the open digits; ``units`` (3, K) those of their rows, columns and boxes in (B, 3 n, n).
    ``unit_means`` (3 n, n²) takes the mean over the cells of each row, column and box.
    """

    vectors: Tensor
    open: Tensor
    units: Tensor
    unit_means: Tensor


class CandidateEmbedding(nn.Embedding):
    """A question (B, n, n) to :class:`Candidates`."""

    units: Tensor

    def __init__(self, config: "SymmetricUpdateConfig") -> None:
        super().__init__(3, config.width)
        self.register_buffer("units", config.units(), persistent=False)

    def forward(self, questions: Tensor) -> Candidates:  # type: ignore[override]
        n, device = math.isqrt(self.units.shape[1]), questions.device
        if questions.shape[1:] != (n, n):
            raise DataError(
                f"a grid of {questions.shape[1]} × {questions.shape[2]} cells: this model is built for Sudokus of {n} "
                "digits; give such grids."
            )
        given = questions.flatten(1)[..., None]  # (B, cells, 1)
        clue = given == torch.arange(1, n + 1, device=device)
        cells = self.units.argsort(dim=1, stable=True).view(3 * n, n)  # of each unit
        excluded = clue[:, cells].any(dim=2)[:, self.units].any(dim=1) | (given > 0)
        role = torch.where(clue, 1, torch.where(excluded, 2, 0))
        # Operations are counted on the meta device, for a question without clues.
        open = torch.arange(role.numel()) if questions.is_meta else (role == 0).flatten().nonzero()[:, 0]
        cell = open // n
        return Candidates(
            super().forward(role).view(-1, n, n, n, self.embedding_dim),
            open,
            (cell // n**2 * 3 * n + self.units[:, cell % n**2]) * n + open % n,
            (self.units == torch.arange(3 * n, device=device)[:, None, None]).any(dim=1) / n,
        )


class SymmetricUpdate(nn.Module):
    """``layers(y + x)`` for a state (B, n, n, n D) of n digits and an embedded question ``x``.

    Only digits that no clue excludes are computed. The state of the others is their embedding.
    """

    def __init__(self, config: SymmetricUpdateConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SymmetricLayer(config) for _ in range(config.num_layers))

    def forward(self, y: Tensor, x: Candidates) -> Tensor:
        vectors = x.vectors.flatten(0, -2)
        h = y.view(vectors.shape).index_select(0, x.open) + vectors.index_select(0, x.open)
        for layer in self.layers:
            h = layer(h, x)
        return vectors.index_copy(0, x.open, h).view(y.shape)


class SymmetricLayer(nn.Module):
    """``h ← norm(h + mlp([h, row + column, box, cell]))`` for open digits (K, D); the last three are means of ``h``."""

    def __init__(self, config: SymmetricUpdateConfig) -> None:
        super().__init__()
        self.mlp = SwiGLU(4 * config.width, config.hidden, config.width)

    def forward(self, h: Tensor, x: Candidates) -> Tensor:
        num_digits, width = x.vectors.shape[-2:]
        full = x.vectors.flatten(0, -2).index_copy(0, x.open, h)  # (B n n n, D)
        units = (x.unit_means @ full.view(len(x.vectors), -1, num_digits * width)).view(-1, width)
        cells = full.view(-1, num_digits, width).mean(dim=1)
        row, column, box = (units.index_select(0, index) for index in x.units)
        cell = cells.index_select(0, x.open // num_digits)
        return rms_norm(h + self.mlp(torch.cat([h, row + column, box, cell], dim=-1)))


class CandidateHead(nn.Linear):
    """A state (B, n, n, n D) to logits (B, n, n, 1 + n) of a blank, which is never an answer, and of each digit."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, state: Tensor) -> Tensor:
        logits = super().forward(state.unflatten(-1, (-1, self.in_features)))[..., 0]
        return F.pad(logits, (1, 0), value=NEVER)
