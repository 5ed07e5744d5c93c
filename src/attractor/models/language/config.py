"""Sizes of a language model's decoder, under the names of ``Qwen3Config``."""

from typing import Any

from transformers import PreTrainedConfig

from attractor.config import require_finite, require_positive, require_whole
from attractor.errors import ConfigError
from attractor.models.budget import BUDGET, stop_rule
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
    max_position_embeddings
        The largest number of tokens in a row.
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
    max_position_embeddings: int = 2048
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
        given = [name for name in ("num_key_value_heads", "head_dim") if getattr(self, name) is not None]
        require_whole(self, 1, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", *given)
        require_whole(self, 1, "num_attention_heads", "min_evaluations", "max_evaluations", "max_position_embeddings")
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
            gate=gate,
        )
