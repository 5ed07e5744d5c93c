"""Pre-norm decoder layers with Qwen3's parameter names: RMSNorm, rotary positions, QK-norm, grouped queries, gated MLP."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.nn.compiled import CompiledBlock

Rotary = tuple[Tensor, Tensor]
Attend = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # queries, keys, values, each (B, heads, T, head_dim), to (B, H, T, head_dim)


def rotary(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Return cosine and sine (B, 1, T, head_dim) of the angles for ``positions`` (B, T)."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = (positions[:, :, None].float() * frequency).repeat(1, 1, 2)[:, None]
    return angle.cos(), angle.sin()


def make_attention_mask(
    length: int, size: int, past: int | Tensor, padding: Tensor | None = None, documents: Tensor | None = None
) -> Tensor | None:
    """Return who may look at whom, (B or 1, 1, T, S) bool; None where every token sees all up to itself and S ends with the last.

    Parameters
    ----------
    length, size, past
        T new tokens look at S places, of which ``past`` lie before the first new one. Places after the last are not seen.
    padding
        (B, past + T), zero at padding, which nobody sees.
    documents
        (B, T), without a past. Wherever they do not go on by one, a new document starts, which does not see the ones before.
    """
    plain = padding is None and documents is None and isinstance(past, int) and size == past + length
    if plain and (past == 0 or length == 1):
        return None
    like = padding if padding is not None else documents if documents is not None else past
    device = like.device if isinstance(like, Tensor) else None
    place = torch.arange(size, device=device)
    own = (torch.arange(length, device=device) + past)[:, None]  # (T, 1)
    mask = (place <= own)[None]
    if documents is not None:
        document = F.pad(documents.diff(dim=1) != 1, (1, 0)).cumsum(dim=1)
        mask = mask & (document[:, :, None] == document[:, None, :])
    if padding is not None:
        mask = mask & (F.pad(padding, (0, size - padding.shape[1])) != 0)[:, None, :]
    return (mask | (place == own))[:, None]  # padding looks at itself: a softmax needs something


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention with grouped queries; without a mask every token sees all up to itself, or a single one all."""
    causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


@dataclass(frozen=True)
class Masked:
    """Attention among the tokens that are read, of which nothing is kept; ``mask`` is that of :func:`visible`."""

    mask: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, self.mask)


class RMSNorm(nn.RMSNorm):
    """Its weight in the dtype of what it normalises: under autocast, mixed dtypes would miss the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class ZeroInitLinear(nn.Linear):
    """The projection that ends a branch. A model that starts these at zero starts as the identity."""


class Attention(nn.Module):
    """Self-attention with grouped queries, rotary positions and normalised queries and keys.

    ``attend`` does the looking: it knows who may see whom, and where keys and values are kept.
    """

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)
        self.o_proj = ZeroInitLinear(num_heads * head_dim, width, bias=False)
        if qk_norm:
            self.q_norm = RMSNorm(head_dim, eps)
            self.k_norm = RMSNorm(head_dim, eps)
        self.qk_norm = qk_norm

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = self.q_proj(x).view(heads), self.k_proj(x).view(heads), self.v_proj(x).view(heads)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = _rotate(q.transpose(1, 2), rotary), _rotate(k.transpose(1, 2), rotary), v.transpose(1, 2)
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))


def _rotate(x: Tensor, rotary: Rotary) -> Tensor:
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class MLP(nn.Module):
    """SwiGLU (``activation="silu"``), or squared ReLU without a gate (``"relu2"``)."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.gated = activation == "silu"
        if self.gated:
            self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = ZeroInitLinear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(F.relu(self.up_proj(x)).square())


class LayerScale(nn.Module):
    """LayerScale kept in ``(0, limit)``: a learnt factor ``limit · sigmoid(raw)`` for every channel."""

    def __init__(self, width: int, start: float, limit: float) -> None:
        super().__init__()
        self.limit, self.start = limit, start
        self.raw = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        share = min(max(self.start / self.limit, 0.02), 0.98)  # right at its limit a sigmoid would no longer learn
        nn.init.constant_(self.raw, math.log(share / (1 - share)))

    def value(self) -> Tensor:
        """Return the factors (D,)."""
        return self.limit * torch.sigmoid(self.raw)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value()


class DecoderLayer(CompiledBlock):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``; with gates on both branches where ``gate`` says so.

    ``gate`` is ``(start, limit)`` of :class:`Gate`, or None.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        qk_norm: bool,
        activation: str,
        gate: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(width, num_heads, num_kv_heads, head_dim, eps, qk_norm)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = MLP(width, hidden, activation)
        self.self_attn_gate = LayerScale(width, *gate) if gate else nn.Identity()
        self.mlp_gate = LayerScale(width, *gate) if gate else nn.Identity()

    def is_steady(self, x: Tensor, rotary: Rotary, attend: Attend) -> bool:
        return self.training and isinstance(attend, Masked)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        x = x + self.self_attn_gate(self.self_attn(self.input_layernorm(x), rotary, attend))
        return x + self.mlp_gate(self.mlp(self.post_attention_layernorm(x)))
