"""Sizes of a language model's decoder, under the names of ``Qwen3Config``."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from attractor.config import require_finite, require_positive, require_whole, suggestion
from attractor.errors import ConfigError
from attractor.models.budget import BUDGET, stop_rule
from attractor.nn.rotary import Rotary, rotary_angles, rotary_of
from attractor.nn.transformer import DecoderLayer
from attractor.solve import Tolerance


class LanguageModelConfig(PreTrainedConfig):
    """Sizes and conventions of the decoder; names as in ``Qwen3Config`` where that has them.

    Attributes
    ----------
    vocab_size, bos_token_id, eos_token_id, pad_token_id
        Entries of the vocabulary, and its special tokens. Training takes them from the prepared text.
    hidden_size, intermediate_size
        Width of the embedding, and of the MLP.
    num_hidden_layers
        Every layer that has its own weights.
    num_attention_heads, num_key_value_heads, head_dim
        Heads of queries; of keys and values, by default as many; and their channels, by default ``hidden_size`` divided
        by the number of heads.
    hidden_act
        ``"silu"`` (SwiGLU) or ``"relu2"`` (squared ReLU without a gate).
    qk_norm
        Whether queries and keys are normalised.
    rms_norm_eps, rope_theta, initializer_range
        The epsilon of RMSNorm, the base of rotary positions, and the standard deviation of initial weights.
    position_scaling
        How rotary positions are scaled, as ``rope_parameters`` of ``transformers`` without ``rope_theta``, such as
        ``{"rope_type": "linear", "factor": 2.0}``; None for no scaling.
    max_position_embeddings
        The largest number of tokens in a row; with the scaling ``dynamic``, its ``factor`` times as many.
    attention_bias, attention_out_bias, mlp_bias
        Whether the projections to queries, keys and values have biases, that of attention's output, and those of MLPs.
    attention_window, first_window_layer
        The number of places, up to its own, to which a token attends in the layers from ``first_window_layer`` on; None
        for all places. A cache keeps all keys and values nevertheless.
    tie_word_embeddings
        Whether the embedding is also the output layer.
    tolerance, min_evaluations, max_evaluations
        The default budget of a solve: the relative residual at which a token has converged, and limits of evaluations.
        Twice the precision of the dtype is used if that is coarser than the tolerance.
    budget
        Used in evaluation mode instead of the tolerance, where a call gives no budget: ``{"depth": 1}``, or
        ``{"tolerance": 0.03}`` with or without ``"max_evaluations"``. It belongs to the weights that it was chosen for,
        so training does not use it and removes it.
    use_cache
        Whether generation keeps keys and values.
    """

    vocab_size: int = 32768
    hidden_size: int = 512
    intermediate_size: int = 1536
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    qk_norm: bool = True
    rms_norm_eps: float = 1e-6
    rope_theta: float = 50_000.0
    position_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 2048
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    attention_window: int | None = None
    first_window_layer: int = 0
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    tolerance: float = 3e-4
    min_evaluations: int = 1
    max_evaluations: int = 64
    budget: dict[str, Any] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    keys_to_ignore_at_inference = ["cache", "proposal", "hidden", "solution"]  # noqa: RUF012, as transformers has it

    def __post_init__(self, **kwargs: Any) -> None:
        require_finite(self)
        optional = ("num_key_value_heads", "head_dim", "attention_window")
        given = [name for name in optional if getattr(self, name) is not None]
        require_whole(self, 1, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", *given)
        require_whole(self, 1, "num_attention_heads", "min_evaluations", "max_evaluations", "max_position_embeddings")
        require_whole(self, 0, "first_window_layer")
        require_positive(self, "tolerance", "rope_theta", "rms_norm_eps", "initializer_range")
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_key_value_heads={self.num_kv_heads} must divide num_attention_heads={self.num_attention_heads}."
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size}; "
                "or give head_dim."
            )
        if self.head_width % 2:
            raise ConfigError(f"head_dim={self.head_width}: rotary positions need an even number.")
        self._check_position_scaling()
        if self.budget is not None:
            if foreign := sorted(self.budget.keys() - set(BUDGET)):
                raise ConfigError(f"budget={self.budget!r}: {foreign[0]!r} is none of {', '.join(BUDGET)}.")
            stop_rule(**self.budget, default=Tolerance())
        if self.hidden_act not in ("silu", "relu2"):
            raise ConfigError(f"hidden_act={self.hidden_act!r}: choose 'silu' or 'relu2'.")
        super().__post_init__(**kwargs)

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: ``num_key_value_heads``, or the number of query heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Channels of a head: ``head_dim``, or ``hidden_size`` divided by the number of heads."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def build_layer(self, gate: tuple[float, float] | None = None) -> DecoderLayer:
        """Return one decoder layer of this size; ``gate`` as in :class:`DecoderLayer`."""
        return DecoderLayer(
            width=self.hidden_size,
            hidden=self.intermediate_size,
            num_heads=self.num_attention_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_width,
            eps=self.rms_norm_eps,
            qk_norm=self.qk_norm,
            activation=self.hidden_act,
            bias=(self.attention_bias, self.attention_out_bias, self.mlp_bias),
            gate=gate,
        )

    @property
    def num_positions(self) -> int:
        """The largest number of tokens in a row: ``max_position_embeddings``, or more if positions scale with the text."""
        scaling = self.position_scaling or {}
        return int(self.max_position_embeddings * (scaling["factor"] if scaling.get("rope_type") == "dynamic" else 1))

    def window_of(self, layer: int) -> int | None:
        """Return the attention window of a layer; None where it attends to all places."""
        return self.attention_window if layer >= self.first_window_layer else None

    def rotary(self, positions: Tensor) -> Rotary:
        """Return the rotary angles of ``positions`` (B, T), each (B, 1, T, head_dim) in float32."""
        positions = positions[:, None, :, None]
        if self.position_scaling is None:
            return rotary_angles(positions, self.head_width, self.rope_theta)
        # Two kinds of scaling depend on the length of the text.
        varies = self.position_scaling["rope_type"] in ("dynamic", "longrope")
        if varies and torch.compiler.is_exporting():
            raise ConfigError(
                f"rope_type={self.position_scaling['rope_type']!r} depends on the length of the text, and cannot be exported."
            )
        return rotary_of(positions, *self._frequencies(positions.device, int(positions.max()) + 1 if varies else None))

    def _frequencies(self, device: Any = None, length: int | None = None) -> tuple[Tensor, float]:
        """Return the frequencies (head_dim / 2,) and the factor of cosine and sine that ``transformers`` computes."""
        scaling = dict(self.position_scaling or {})
        read = SimpleNamespace(
            rope_parameters={**scaling, "rope_theta": self.rope_theta},
            standardize_rope_params=lambda: None,
            head_dim=self.head_width,
            max_position_embeddings=self.max_position_embeddings,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
        )
        return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](read, device, length)

    def _check_position_scaling(self) -> None:
        if self.position_scaling is None:
            return
        kind = str(self.position_scaling.get("rope_type"))
        if kind not in ROPE_INIT_FUNCTIONS:
            raise ConfigError(f"position_scaling: rope_type={kind!r}; {suggestion(kind, ROPE_INIT_FUNCTIONS)}")
        try:
            frequency, _ = self._frequencies()
        except KeyError as error:
            raise ConfigError(f"position_scaling: {kind!r} needs {error}; give it too.") from error
        if len(frequency) != self.head_width // 2:
            raise ConfigError(
                f"position_scaling: turns {2 * len(frequency)} of the {self.head_width} channels of a head; only scalings of "
                "all channels are implemented."
            )
