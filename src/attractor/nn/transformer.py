"""Pre-norm decoder layers with Qwen3's parameter names: RMSNorm, rotary positions, QK-norm, grouped queries, MLP."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.nn.compiled import CompiledBlock
from attractor.nn.rotary import Rotary, rotate

# Queries (B, H, T, head_dim), keys and values (B, heads, T, head_dim), to (B, H, T, head_dim).
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_attention_mask(
    length: int,
    size: int,
    past: int | Tensor,
    padding: Tensor | None = None,
    documents: Tensor | None = None,
    window: int | None = None,
) -> Tensor | None:
    """Return which keys each query may attend to, (B or 1, 1, T, S) bool; None for causal attention without exceptions.

    ``length`` = T new tokens attend to ``size`` = S places, of which ``past`` come before the first new token. Places
    after the last new token are hidden. ``padding`` (B, past + T) is zero at padding, which is hidden. ``documents``
    (B, T) are positions, without a past: a new document starts wherever they do not increase by one, and documents do
    not see each other. With ``window``, a query attends to the last ``window`` places up to its own.
    """
    is_causal = padding is None and documents is None and isinstance(past, int) and size == past + length
    is_causal = is_causal and (window is None or (not torch.compiler.is_exporting() and size <= window))
    if is_causal and (past == 0 or length == 1):
        return None
    like = padding if padding is not None else documents if documents is not None else past
    device = like.device if isinstance(like, Tensor) else None
    place = torch.arange(size, device=device)
    own = (torch.arange(length, device=device) + past)[:, None]  # (T, 1)
    mask = (place <= own)[None]
    if window is not None:
        mask = mask & (place > own - window)
    if documents is not None:
        document = F.pad(documents.diff(dim=1) != 1, (1, 0)).cumsum(dim=1)
        mask = mask & (document[:, :, None] == document[:, None, :])
    if padding is not None:
        mask = mask & (F.pad(padding, (0, size - padding.shape[1])) != 0)[:, None, :]
    return (mask | (place == own))[:, None]  # padding attends to itself: a softmax over nothing is NaN


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention with grouped queries. Without a mask it is causal; a single query then sees all keys."""
    causal = mask is None and bool(q.shape[2] == k.shape[2])
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


@dataclass(frozen=True)
class MaskedAttention:
    """Attention among the tokens that are read, without a cache; ``mask`` as from :func:`make_attention_mask`."""

    mask: Tensor | None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, self.mask)


class RMSNorm(nn.RMSNorm):
    """RMSNorm with its weight in the dtype of the input: mixed dtypes would not use the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class ZeroInitLinear(nn.Linear):
    """The last projection of a residual branch. Models initialise it with zeros: the layer starts as the identity."""


class Attention(nn.Module):
    """Self-attention with grouped queries, rotary positions and optional QK-norm.

    ``attend`` computes the attention itself: it knows the mask and where keys and values are kept. ``bias`` says
    whether queries, keys and values have one, and whether the output has.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        eps: float,
        qk_norm: bool,
        bias: tuple[bool, bool],
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, num_heads * head_dim, bias=bias[0])
        self.k_proj = nn.Linear(width, num_kv_heads * head_dim, bias=bias[0])
        self.v_proj = nn.Linear(width, num_kv_heads * head_dim, bias=bias[0])
        self.o_proj = ZeroInitLinear(num_heads * head_dim, width, bias=bias[1])
        if qk_norm:
            self.q_norm = RMSNorm(head_dim, eps)
            self.k_norm = RMSNorm(head_dim, eps)
        self.qk_norm = qk_norm

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = self.q_proj(x).view(heads), self.k_proj(x).view(heads), self.v_proj(x).view(heads)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = rotate(q.transpose(1, 2), rotary), rotate(k.transpose(1, 2), rotary), v.transpose(1, 2)
        return self.o_proj(attend(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU (``activation="silu"``), or squared ReLU without a gate (``"relu2"``)."""

    def __init__(self, width: int, hidden: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gated = activation == "silu"
        if self.gated:
            self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = ZeroInitLinear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(F.relu(self.up_proj(x)).square())


class LayerScale(nn.Module):
    """Learnt factors ``limit · sigmoid(raw)`` in ``(0, limit)``, one for every channel, that start at ``start``."""

    def __init__(self, width: int, start: float, limit: float) -> None:
        super().__init__()
        self.limit, self.start = limit, start
        self.raw = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        share = min(max(self.start / self.limit, 0.02), 0.98)  # a saturated sigmoid would not learn
        nn.init.constant_(self.raw, math.log(share / (1 - share)))

    def value(self) -> Tensor:
        """Return the factors (D,)."""
        return self.limit * torch.sigmoid(self.raw)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value()


class DecoderLayer(CompiledBlock):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    ``gate`` is ``(start, limit)`` of a :class:`LayerScale` on each branch; None for no LayerScale. ``bias`` says whether
    there are biases in the projections of queries, keys and values, of attention's output, and of the MLP.
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
        bias: tuple[bool, bool, bool] = (False, False, False),
        gate: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps)
        self.self_attn = Attention(width, num_heads, num_kv_heads, head_dim, eps, qk_norm, bias[:2])
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.mlp = MLP(width, hidden, activation, bias[2])
        self.self_attn_gate = LayerScale(width, *gate) if gate else nn.Identity()
        self.mlp_gate = LayerScale(width, *gate) if gate else nn.Identity()

    def has_fixed_shape(self, x: Tensor, rotary: Rotary, attend: Attend) -> bool:
        return self.training and isinstance(attend, MaskedAttention)

    def forward(self, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        x = x + self.self_attn_gate(self.self_attn(self.input_layernorm(x), rotary, attend))
        return x + self.mlp_gate(self.mlp(self.post_attention_layernorm(x)))
