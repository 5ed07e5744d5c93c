"""Pre-norm decoder layers with Qwen3's parameter names: RMSNorm, rotary positions, QK-norm, grouped queries, gated MLP."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]


def rotary(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Return cosine and sine (B, 1, T, head_dim) of the angles for ``positions`` (B, T)."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = (positions[:, :, None].float() * frequency).repeat(1, 1, 2)[:, None]
    return angle.cos(), angle.sin()


def visible(padding: Tensor | None, positions: Tensor | None) -> Tensor | None:
    """Return who may look at whom, (B, 1, T, T) bool, or None where every token sees all earlier ones.

    Parameters
    ----------
    padding
        (B, T), zero at padding, which nobody sees.
    positions
        (B, T). Wherever they do not go on by one, a new document starts, which does not see the ones before.
    """
    if padding is None and positions is None:
        return None
    like = padding if padding is not None else positions
    assert like is not None
    length = like.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=like.device).tril()
    mask = causal[None]
    if positions is not None:
        document = F.pad(positions.diff(dim=1) != 1, (1, 0)).cumsum(dim=1)
        mask = mask & (document[:, :, None] == document[:, None, :])
    if padding is not None:
        mask = mask & (padding[:, None, :] != 0)
    itself = torch.eye(
        length, dtype=torch.bool, device=like.device
    )  # padding looks at itself: a softmax needs something
    return (mask | itself)[:, None]


class RMSNorm(nn.RMSNorm):
    """Its weight in the dtype of what it normalises: under autocast, mixed dtypes would miss the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Closing(nn.Linear):
    """The projection that ends a branch. A model that starts these at zero starts as the identity."""


class Attention(nn.Module):
    """Causal self-attention with grouped queries, rotary positions and normalised queries and keys."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, head_dim: int, eps: float, qk_norm: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, num_kv_heads * head_dim, bias=False)
        self.o_proj = Closing(num_heads * head_dim, width, bias=False)
        if qk_norm:
            self.q_norm = RMSNorm(head_dim, eps)
            self.k_norm = RMSNorm(head_dim, eps)
        self.qk_norm = qk_norm

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = self.q_proj(x).view(heads), self.k_proj(x).view(heads), self.v_proj(x).view(heads)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = _rotate(q.transpose(1, 2), rotary), _rotate(k.transpose(1, 2), rotary), v.transpose(1, 2)
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).flatten(2))


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
        self.down_proj = Closing(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(F.relu(self.up_proj(x)).square())


class Gate(nn.Module):
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


class DecoderLayer(nn.Module):
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
        self.self_attn_gate = Gate(width, *gate) if gate else nn.Identity()
        self.mlp_gate = Gate(width, *gate) if gate else nn.Identity()

    def forward(self, x: Tensor, rotary: Rotary, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn_gate(self.self_attn(self.input_layernorm(x), rotary, mask))
        return x + self.mlp_gate(self.mlp(self.post_attention_layernorm(x)))
