"""What TRM, EqR, HRM and TRM-DEQ share: a state of an answer and a latent, embedded questions, and heads.

Layers, initialisation and the names of the parameters are those of the published code, so that the models differ only
in the iteration.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.config import config_class, require_whole
from attractor.errors import ConfigError
from attractor.models.reasoning.reasoner import Draw, Reasoner, ReasonerConfig, normal_noise
from attractor.nn.grid import HaltingHead, ScaledEmbedding, lecun_linear, truncated_normal_


@config_class
class TwoPartConfig(ReasonerConfig):
    """Settings that these models share.

    Attributes
    ----------
    num_name_tokens
        Cells before the grid that hold a learnt embedding of the puzzle's name, ``puzzle_emb_len`` in published
        checkpoints. The network then reads all cells as one sequence.
    name_width
        Numbers of a name's embedding, ``puzzle_emb_ndim``; the rest of its cells are zeros. 0: as many as the cells hold.
    num_names
        Names with an embedding, ``num_puzzle_identifiers``. With one, all puzzles have the same name. With more, every cell
        of a question holds its symbol plus ``num_symbols`` times the number of the puzzle's name.
    """

    num_name_tokens: int = 0
    name_width: int = 0
    num_names: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, 0, "num_name_tokens", "name_width")
        if self.name_width > self.num_name_tokens * self.width:
            raise ConfigError(
                f"name_width={self.name_width}: {self.num_name_tokens} cells of a name hold fewer numbers."
            )
        require_whole(self, 1, "num_names")
        if self.num_names > 1 and not self.num_name_tokens:
            raise ConfigError(
                f"num_names={self.num_names} needs cells that hold them; set num_name_tokens, such as 16."
            )

    @property
    @abstractmethod
    def width(self) -> int:
        """Channels per cell of the answer, and of the latent."""


class TwoPartReasoner(Reasoner):
    """The state is the answer and a latent, (B, height, W, 2 D), and starts from the same constant vectors.

    With name tokens, it has additional rows before the grid; their first cells are unused and never change.
    """

    config: TwoPartConfig
    H_init: Tensor
    L_init: Tensor
    noise = 0.0
    compares_halting = False

    def __init__(self, config: TwoPartConfig) -> None:
        super().__init__(config)
        width = self.width = config.width
        self.num_symbols = config.num_symbols * config.num_names  # values of a cell, with its name
        self.embedding = ScaledEmbedding(config.num_symbols, width)
        if config.num_name_tokens:
            self.puzzle_emb = nn.Parameter(
                torch.zeros(config.num_names, config.name_width or config.num_name_tokens * width)
            )
        self.add_networks()
        self.lm_head = lecun_linear(width, config.num_classes)
        self.q_head = HaltingHead(width, compares=self.compares_halting)
        if not self.random_init:
            for name in ("H_init", "L_init"):  # random, not trained
                self.register_buffer(name, truncated_normal_(torch.empty(width), 1.0))

    @abstractmethod
    def add_networks(self) -> None:
        """Set the attributes for the networks of one evaluation."""

    def state_shape(self, questions: Tensor) -> tuple[int, int, int]:
        """Return the batch size, height and width of a state."""
        batch, height, width = questions.shape
        return batch, -(-self.config.num_name_tokens // width) + height, width

    def init_state(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([self.H_init, self.L_init]).expand(*self.state_shape(questions), -1)

    def make_update(self, questions: Tensor, noise: float | None = None) -> Callable[[Tensor], Tensor]:
        x, draw = self._embed(questions), normal_noise(self.noise if noise is None else noise, questions)
        return lambda state: self._restore(self.evaluate_cells(self._cells(state), x, draw), state)

    @abstractmethod
    def evaluate_cells(self, state: Tensor, x: Tensor, draw: Draw) -> Tensor:
        """Return the next state ``[y, z]``, (B, …, 2 D), for the embedded question ``x`` (B, …, D)."""

    def _embed(self, questions: Tensor) -> Tensor:
        """Return the embedded question (B, height, W, D); with name tokens all cells in sequence, (B, N, D)."""
        config = self.config
        if not config.num_name_tokens:
            embedded: Tensor = self.embedding(questions)
            return embedded
        names = questions[:, 0, 0] // config.num_symbols
        x = self.embedding(questions - config.num_symbols * names[:, None, None])
        embedded = F.pad(self.puzzle_emb[names], (0, config.num_name_tokens * self.width - self.puzzle_emb.shape[1]))
        return torch.cat([self.width**0.5 * embedded.view(len(x), -1, self.width), x.flatten(1, 2)], dim=1)

    def _cells(self, state: Tensor) -> Tensor:
        """Return the used cells of a state in the shape of the embedded question."""
        num_names = self.config.num_name_tokens
        return state.flatten(1, 2)[:, -num_names % state.shape[2] :] if num_names else state

    def _restore(self, cells: Tensor, state: Tensor) -> Tensor:
        """Return ``state`` with new used cells."""
        cells, num_unused = cells.flatten(1, -2).to(state.dtype), -self.config.num_name_tokens % state.shape[2]
        if num_unused:
            cells = torch.cat([state.flatten(1, 2)[:, :num_unused], cells], dim=1)
        return cells.view(state.shape)

    def decode(self, state: Tensor) -> tuple[Tensor, Tensor]:
        answer = state[..., : self.width]
        num_rows = -(-self.config.num_name_tokens // state.shape[2])
        return self.lm_head(answer[:, num_rows:]), self.q_head(self._cells(answer))


def with_latent_noise(state: Tensor, draw: Draw) -> Tensor:
    """Add noise to the latent of a state ``[y, z]``, as PTRM does at test time (arXiv:2605.19943)."""
    y, z = state.chunk(2, dim=-1)
    noise = draw(z.shape, z.dtype)
    return state if noise is None else torch.cat([y, z + noise], dim=-1)
