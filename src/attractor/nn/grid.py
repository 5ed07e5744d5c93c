"""Post-norm layers over the cells of a puzzle, and the recursion of answer and reasoning built on them.

Every layer ends in a norm, so that a state stays on a sphere however often it is updated (TRM, arXiv:2510.04871). Layers see a grid
as N cells of width D; what mixes the cells is attention with rotary positions, an MLP across them, or a convolution. Parameter
names of layers are those of TRM's published code.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.config import require_whole, suggestion
from attractor.errors import ConfigError, DataError
from attractor.nn.compiled import CompiledBlock
from attractor.nn.rotary import Rotary, rotary_angles, rotate

MIXINGS = ("mixer", "attention", "convolution")


@dataclass(frozen=True, kw_only=True)
class GridNetworkConfig:
    """A stack of ``num_layers`` layers of ``width`` channels a cell.

    Attributes
    ----------
    mixing
        ``"mixer"`` (an MLP across cells, for grids of one size), ``"attention"`` or ``"convolution"`` (3 × 3; both for any size).
    hidden, cell_hidden
        Hidden width of the MLP over channels, and of the mixer's over cells.
    num_cells
        Cells of a grid, which a mixer is built for; not used otherwise.
    num_heads, grid_positions, theta
        Of attention: heads, whether rotary positions count rows and columns (or cells in reading order), and their base.
    """

    width: int = 128
    num_layers: int = 2
    mixing: str = "mixer"
    hidden: int = 384
    cell_hidden: int = 128
    num_cells: int = 81
    num_heads: int = 4
    grid_positions: bool = True
    theta: float = 10_000.0

    def __post_init__(self) -> None:
        require_whole(self, 1, "width", "num_layers", "hidden", "cell_hidden", "num_cells", "num_heads")
        if self.mixing not in MIXINGS:
            raise ConfigError(f"CellsConfig(mixing={self.mixing!r}): {suggestion(self.mixing, MIXINGS)}")
        step = self.num_heads * (4 if self.grid_positions else 2)
        if self.mixing == "attention" and self.width % step:
            raise ConfigError(
                f"CellsConfig(width={self.width}): attention of {self.num_heads} heads needs a multiple of {step}."
            )


class SwiGLU(nn.Module):
    """``down(silu(gate) * up)``, gate and up from one product."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = linear(width, 2 * hidden)
        self.down_proj = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class TokenMixer(SwiGLU):
    """The same across the first dimension: weights from the left, so that nothing has to be transposed."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.gate_up_proj.weight @ x.flatten(1)).chunk(2)
        return (self.down_proj.weight @ (F.silu(gate) * up)).view(x.shape)


class CellAttention(nn.Module):
    """Every cell looks at every cell of (B, N, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = linear(width, 3 * width)
        self.o_proj = linear(width, width)

    def forward(self, x: Tensor, angles: Rotary | None) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class CellLayer(nn.Module):
    """``x ← norm(x + mix(x))``, then ``x ← norm(x + mlp(x))``, of cells (B, N, D).

    A mixer's first norm goes across the cells, as in TRM, and its cells are (N, B, D): rows of one matrix to mix, without a copy.
    """

    def __init__(self, config: GridNetworkConfig) -> None:
        super().__init__()
        self.mixing = config.mixing
        if config.mixing == "mixer":
            self.mlp_t = TokenMixer(config.num_cells, config.cell_hidden)
        elif config.mixing == "attention":
            self.self_attn = CellAttention(config.width, config.num_heads)
        else:
            self.conv = nn.Conv2d(config.width, config.width, 3, padding=1, bias=False)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, grid: torch.Size, angles: Rotary | None) -> Tensor:
        if self.mixing == "mixer":
            x = normalise(x + self.mlp_t(x), dim=0)
        elif self.mixing == "attention":
            x = normalise(x + self.self_attn(x, angles))
        else:
            h = self.conv(x.unflatten(1, grid).permute(0, 3, 1, 2))
            x = normalise(x + h.permute(0, 2, 3, 1).flatten(1, 2))
        return normalise(x + self.mlp(x))


class GridNetwork(CompiledBlock):
    """``(x, injection) ↦ layers(x + injection)`` on cells (B, N, D).

    A mixer's layers see (N, B, D), and what is returned lies in memory like that: the next call finds it in place.
    """

    def __init__(self, config: GridNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(CellLayer(config) for _ in range(config.num_layers))

    def angles(self, grid: torch.Size, like: Tensor) -> Rotary | None:
        """Return what ``forward`` needs to know of positions on a ``grid`` of (height, W) cells."""
        config = self.config
        if config.mixing == "mixer" and math.prod(grid) != config.num_cells:
            raise DataError(
                f"a grid of {' × '.join(map(str, grid))} cells: this model's mixer is built for grids of {config.num_cells}; "
                "give such grids, build it for these (num_cells), or mix by attention or convolution."
            )
        if config.mixing != "attention":
            return None
        places = torch.cartesian_prod(*(torch.arange(n, device=like.device) for n in grid))
        if not config.grid_positions:
            places = torch.arange(len(places), device=like.device)[:, None]
        return rotary_angles(places, config.width // config.num_heads, config.theta)

    def flops(self, num_cells: int) -> float:
        """Return the floating-point operations of one call on a grid of ``num_cells``."""
        config = self.config
        width, mlp = config.width, 3 * num_cells * config.width * config.hidden
        if config.mixing == "mixer":
            mix = 3 * width * num_cells * config.cell_hidden
        elif config.mixing == "attention":
            mix = 4 * num_cells * width**2 + 2 * num_cells**2 * width
        else:
            mix = 9 * num_cells * width**2
        return 2.0 * config.num_layers * (mix + mlp)

    def forward(self, x: Tensor, injection: Tensor, grid: torch.Size, angles: Rotary | None) -> Tensor:
        x, across = x + injection, self.config.mixing == "mixer"
        x = x.transpose(0, 1).contiguous() if across else x
        for layer in self.layers:
            x = layer(x, grid, angles)
        return x.transpose(0, 1) if across else x


@dataclass(frozen=True, kw_only=True)
class TRMUpdateConfig:
    """The update of a state of two parts: ``num_latent`` times the reasoning ``z``, then once the answer ``y``."""

    cells: GridNetworkConfig
    num_latent: int = 3

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_latent")

    @property
    def width(self) -> int:
        return self.cells.width

    @property
    def state_width(self) -> int:
        return 2 * self.cells.width

    def build(self) -> "TRMUpdate":
        return TRMUpdate(self)


class TRMUpdate(CompiledBlock):
    """``z ← net(z + y + x)`` ``num_latent`` times, then ``y ← net(y + z)``: one network for both (TRM).

    State and result are ``[y, z]``, (B, height, W, 2 D); the embedded question ``x`` is (B, height, W, D).
    """

    def __init__(self, config: TRMUpdateConfig) -> None:
        super().__init__()
        self.num_latent = config.num_latent
        self.net = GridNetwork(config.cells)

    def flops(self, num_cells: int) -> float:
        """Return the floating-point operations of one call on a grid of ``num_cells``."""
        return (self.num_latent + 1) * self.net.flops(num_cells)

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        grid = x.shape[1:-1]
        angles = self.net.angles(grid, x)
        y, z = state.flatten(1, -2).chunk(2, dim=-1)
        x = x.flatten(1, -2)
        for _ in range(self.num_latent):
            z = self.net(z, y + x, grid, angles)
        y = self.net(y, z, grid, angles)
        return torch.cat([y, z], dim=-1).view(state.shape)


def normalise(x: Tensor, dim: int = -1) -> Tensor:
    """Scale dimension ``dim`` to a root mean square of one."""
    if dim == -1:
        return F.rms_norm(x, x.shape[-1:], eps=1e-5)
    # Along the way the numbers lie in memory, in TRM's order: random networks blow a rounding up to 5e-4 in twelve updates.
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-5)


def swiglu_hidden(width: int, expansion: float = 4.0) -> int:
    """Return the hidden width of HRM's and TRM's MLP: two thirds of ``expansion``, rounded up to a multiple of 256."""
    return -(round(expansion * width * 2 / 3) // -256) * 256


def truncated_normal_(weight: Tensor, std: float) -> Tensor:
    """Fill with normal numbers cut at two deviations, which have the deviation ``std`` *after* the cut."""
    std = std / 0.8796256610342398  # a standard normal's deviation between −2 and 2
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def linear(num_in: int, num_out: int) -> nn.Linear:
    """No bias, and weights that keep the size of what they are given."""
    module = nn.Linear(num_in, num_out, bias=False)
    truncated_normal_(module.weight, num_in**-0.5)
    return module


class CellEmbedding(nn.Embedding):
    """Symbols (…) to vectors (…, D) of entries about one: small weights, scaled by √D, so that they learn fast under Adam."""

    def __init__(self, num_symbols: int, width: int) -> None:
        super().__init__(num_symbols, width)
        truncated_normal_(self.weight, width**-0.5)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.embedding_dim**0.5 * super().forward(symbols)


class HaltingHead(nn.Linear):
    """Whether the answer is right, judged from the first cell: (B, height, W, D) to logits (B,).

    Of its two outputs, which HRM and TRM have and publish, the first is to halt. The second, to continue, is not used. It begins
    by halting nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 2)
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, -5.0)

    def forward(self, answer: Tensor) -> Tensor:
        return super().forward(answer[:, 0, 0])[:, 0]
