"""Post-norm layers over the cells of a grid, and the TRM update built from them.

Every layer ends in a norm, so the norm of a state stays constant over any number of updates (TRM, arXiv:2510.04871).
A grid is N cells of width D. Attention with rotary positions, an MLP across cells, or a convolution mixes the cells.
Parameter names are those of TRM's published code.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.config import config_class, require_whole, suggestion
from attractor.errors import ConfigError, DataError
from attractor.nn.compiled import CompiledBlock
from attractor.nn.rotary import Rotary, rotary_angles, rotate

MIXINGS = ("mixer", "attention", "convolution")


@config_class
class GridNetworkConfig:
    """A stack of layers on the cells of a grid.

    Attributes
    ----------
    width, num_layers
        Channels per cell, and the number of layers.
    mixing
        ``"mixer"`` (an MLP across cells, for one grid size); ``"attention"`` or ``"convolution"`` (3 × 3) for any size.
    hidden, cell_hidden
        Hidden width of the MLP across channels, and of the mixer's MLP across cells.
    num_cells
        Number of cells of the mixer's grids; the other mixings ignore it.
    num_heads, grid_positions, theta
        For attention: the number of heads; rotary positions by row and column, or else in reading order; their base.
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
            raise ConfigError(f"GridNetworkConfig(mixing={self.mixing!r}): {suggestion(self.mixing, MIXINGS)}")
        step = self.num_heads * (4 if self.grid_positions else 2)
        if self.mixing == "attention" and self.width % step:
            raise ConfigError(
                f"GridNetworkConfig(width={self.width}): attention of {self.num_heads} heads needs a multiple of {step}."
            )


class SwiGLU(nn.Module):
    """``down(silu(gate) * up)``; one matrix product computes gate and up. The result has the width of the input, or
    ``out``.
    """

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.gate_up_proj = lecun_linear(width, 2 * hidden)
        self.down_proj = lecun_linear(hidden, out or width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class TokenMixer(SwiGLU):
    """SwiGLU across the first dimension; the weights multiply from the left, so nothing is transposed."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.gate_up_proj.weight @ x.flatten(1)).chunk(2)
        return (self.down_proj.weight @ (F.silu(gate) * up)).view(x.shape)


class GridAttention(nn.Module):
    """Self-attention over all cells of (B, N, D)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = lecun_linear(width, 3 * width)
        self.o_proj = lecun_linear(width, width)

    def forward(self, x: Tensor, angles: Rotary | None) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class GridLayer(nn.Module):
    """``x ← norm(x + mix(x))``, then ``x ← norm(x + mlp(x))``, for cells (B, N, D).

    With a mixer, cells are (N, B, D), so that mixing is one matrix product without a copy, and the first norm is
    across cells, as in TRM.
    """

    def __init__(self, config: GridNetworkConfig) -> None:
        super().__init__()
        self.mixing = config.mixing
        if config.mixing == "mixer":
            self.mlp_t = TokenMixer(config.num_cells, config.cell_hidden)
        elif config.mixing == "attention":
            self.self_attn = GridAttention(config.width, config.num_heads)
        else:
            self.conv = nn.Conv2d(config.width, config.width, 3, padding=1, bias=False)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(self, x: Tensor, grid: torch.Size, angles: Rotary | None) -> Tensor:
        if self.mixing == "mixer":
            x = rms_norm(x + self.mlp_t(x), dim=0)
        elif self.mixing == "attention":
            x = rms_norm(x + self.self_attn(x, angles))
        else:
            h = self.conv(x.unflatten(1, grid).permute(0, 3, 1, 2))
            x = rms_norm(x + h.permute(0, 2, 3, 1).flatten(1, 2))
        return rms_norm(x + self.mlp(x))


class GridNetwork(CompiledBlock):
    """``(x, injection) -> layers(x + injection)``, all (B, N, D).

    With a mixer, the result is stored as (N, B, D), which the next call reads without a copy.
    """

    def __init__(self, config: GridNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(GridLayer(config) for _ in range(config.num_layers))

    def angles(self, grid: torch.Size, like: Tensor) -> Rotary | None:
        """Return the rotary angles that ``forward`` takes for a ``grid`` of (height, W) cells; ``None`` without attention.

        Raises :class:`DataError` when a mixer was built for another number of cells.
        """
        config = self.config
        if config.mixing == "mixer" and math.prod(grid) != config.num_cells:
            raise DataError(
                f"a grid of {' × '.join(map(str, grid))} cells: this model's mixer is built for grids of {config.num_cells}; "
                "give such grids, build it for these (num_cells), or mix by attention or convolution."
            )
        if config.mixing != "attention":
            return None
        positions = torch.cartesian_prod(*(torch.arange(n, device=like.device) for n in grid))
        if not config.grid_positions:
            positions = torch.arange(len(positions), device=like.device)[:, None]
        return rotary_angles(positions, config.width // config.num_heads, config.theta)

    def forward(self, x: Tensor, injection: Tensor, grid: torch.Size, angles: Rotary | None) -> Tensor:
        x, cells_first = x + injection, self.config.mixing == "mixer"
        x = x.transpose(0, 1).contiguous() if cells_first else x
        for layer in self.layers:
            x = layer(x, grid, angles)
        return x.transpose(0, 1) if cells_first else x


@config_class
class TRMUpdateConfig:
    """Steps of the latent ``z``, then one step of the answer ``y``, both by ``network``.

    Attributes
    ----------
    num_latent
        The number of steps of ``z``; ``L_cycles`` of TRM.
    """

    network: GridNetworkConfig
    num_latent: int = 3

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_latent")

    @property
    def width(self) -> int:
        return self.network.width

    @property
    def state_width(self) -> int:
        """Channels of the state per cell."""
        return 2 * self.network.width

    def build(self) -> "TRMUpdate":
        return TRMUpdate(self)


class TRMUpdate(CompiledBlock):
    """``z ← net(z + y + x)``, ``num_latent`` times, then ``y ← net(y + z)``, with one network for both (TRM).

    The state and the result are ``[y, z]``, (B, …, 2 D); the embedded question ``x`` is (B, …, D), of a grid or a list of
    cells. With ``damping`` λ and ``noise`` every call is ``h ← (1 − λ) h + λ net(h + injection) + noise`` (EqR); ``noise``
    is (num_latent + 1, B, …, D).
    """

    def __init__(self, config: TRMUpdateConfig) -> None:
        super().__init__()
        self.num_latent = config.num_latent
        self.net = GridNetwork(config.network)

    def forward(self, state: Tensor, x: Tensor, damping: float = 1.0, noise: Tensor | None = None) -> Tensor:
        grid = x.shape[1:-1]
        angles = self.net.angles(grid, x)
        y, z = state.flatten(1, -2).chunk(2, dim=-1)
        x = x.flatten(1, -2)

        def step(h: Tensor, injection: Tensor, call: int) -> Tensor:
            new: Tensor = self.net(h, injection, grid, angles)
            if damping != 1.0:
                new = (1 - damping) * h + damping * new
            return new if noise is None else new + noise[call].flatten(1, -2)

        for call in range(self.num_latent):
            z = step(z, y + x, call)
        y = step(y, z, self.num_latent)
        return torch.cat([y, z], dim=-1).view(state.shape)


def rms_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Scale ``x`` to a root mean square of one over ``dim``."""
    if dim == -1:
        return F.rms_norm(x, x.shape[-1:], eps=1e-5)
    # The operations of TRM's code, in its order: random networks amplify a rounding error to 5e-4 in twelve updates.
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-5)


def swiglu_hidden(width: int, expansion: float = 4.0) -> int:
    """Return the hidden width of the MLP in HRM and TRM: ``2/3 · expansion · width``, rounded up to 256s."""
    return -(round(expansion * width * 2 / 3) // -256) * 256


def truncated_normal_(weight: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill with normal values truncated at two standard deviations; ``std`` is their deviation after truncation."""
    std = std / 0.8796256610342398  # standard deviation of a standard normal truncated to [−2, 2]
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def lecun_linear(num_in: int, num_out: int) -> nn.Linear:
    """Return a linear layer without bias, with truncated normal weights of standard deviation ``num_in ** -0.5``."""
    module = nn.Linear(num_in, num_out, bias=False)
    truncated_normal_(module.weight, num_in**-0.5)
    return module


class ScaledEmbedding(nn.Embedding):
    """Symbols (…) to vectors (…, D) with entries of about one: small weights times √D, which Adam learns faster."""

    def __init__(self, num_symbols: int, width: int) -> None:
        super().__init__(num_symbols, width)
        truncated_normal_(self.weight, width**-0.5)

    def forward(self, symbols: Tensor) -> Tensor:
        return self.embedding_dim**0.5 * super().forward(symbols)


class HaltingHead(nn.Linear):
    """The logit (B,) that an answer (B, …, D) is right, from its first cell. A new head halts nothing.

    HRM and TRM have two outputs: to halt and to continue. TRM halts where the first is above 0. HRM halts where the first
    is above the second (``compares``): their difference is the logit.
    """

    def __init__(self, width: int, *, compares: bool = False) -> None:
        super().__init__(width, 2)
        self.compares = compares
        nn.init.zeros_(self.weight)
        nn.init.constant_(self.bias, -5.0)
        if compares:
            nn.init.zeros_(self.bias[1:])

    def forward(self, answer: Tensor) -> Tensor:
        halt, go_on = super().forward(answer.flatten(1, -2)[:, 0]).unbind(dim=1)
        return halt - go_on if self.compares else halt
