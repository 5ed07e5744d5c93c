"""What every language model here shares: embedding, decoder layers under Qwen3's names, head, loss, generation.

A model is this plus ``refine``, which turns embedded tokens into output embeddings.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from attractor.config import require_positive, require_whole
from attractor.errors import ConfigError, DataError
from attractor.models.budget import stop_rule
from attractor.models.language.inference.context import AttentionContext, Reader, prepare_cache
from attractor.nn.compiled import CompiledBlock
from attractor.nn.transformer import DecoderLayer, LayerScale, RMSNorm, ZeroInitLinear, make_attention_mask, rotary
from attractor.solve import Solution, StopRule, Tolerance, require_resolvable

BUDGET = ("depth", "tolerance", "max_evaluations")
CHUNK = 2048  # tokens whose logits exist at once


class LanguageModelConfig(PreTrainedConfig):
    """Sizes and conventions of the decoder; names as in ``Qwen3Config`` wherever that has one.

    ``num_hidden_layers`` counts every layer that has weights of its own. ``hidden_act`` is ``"silu"`` (SwiGLU) or
    ``"relu2"`` (squared ReLU without a gate). ``tolerance`` and the least and most evaluations bound a solve.
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
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
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
        if self.hidden_act not in ("silu", "relu2"):
            raise ConfigError(f"hidden_act={self.hidden_act!r}: choose 'silu' or 'relu2'.")
        super().__post_init__(**kwargs)

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: ``num_key_value_heads``, or as many as of queries."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Channels of a head: ``head_dim``, or its share of the width."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def build_layer(self, gate: tuple[float, float] | None = None) -> DecoderLayer:
        """Return one decoder layer of this size."""
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


@dataclass
class LanguageModelOutput(ModelOutput):
    """What a forward pass returns.

    Attributes
    ----------
    loss
        Mean cross-entropy of the next tokens in nats, where ``labels`` were given.
    logits
        (B, T, V); left out where ``labels`` were given, unless asked for by ``logits_to_keep``.
    proposal, hidden
        (B, T, D): the backbone's output embeddings, and the refined ones that are decoded (before the last norm).
    solution
        Residual, evaluations (B, T) and outcome of the solve; None where nothing is solved.
    cache
        Keys and values of all tokens read so far, for the next call; None where none are kept.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    proposal: Tensor | None = None
    hidden: Tensor | None = None
    solution: Solution | None = None
    cache: Cache | None = None


class Decoder(nn.Module):
    """Embedding, layers and last norm, under the names of ``Qwen3Model``."""

    def __init__(self, config: LanguageModelConfig, layers: Iterable[DecoderLayer]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False

    def run(self, x: Tensor, context: Reader, first: int, last: int) -> Tensor:
        """Send ``x`` (B, T, D) through layers ``first`` to ``last − 1``."""
        for slot in range(first, last):
            layer, attend = self.layers[slot], context.attend(slot)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, context.rotary, attend, use_reentrant=False)
            else:
                x = layer(x, context.rotary, attend)
        return x


class LanguageModel(PreTrainedModel, GenerationMixin):
    """A causal language model whose ``refine`` decides how embedded tokens become output embeddings."""

    config: LanguageModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012, as transformers declares it
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LanguageModelConfig, layers: Iterable[DecoderLayer]) -> None:
        super().__init__(config)
        self.model = Decoder(config, layers)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.token_loss = TokenLoss()

    @abstractmethod
    def refine(
        self, x: Tensor, context: AttentionContext, stop: StopRule | None
    ) -> tuple[Tensor, Tensor, Solution | None]:
        """Return ``(proposal, hidden, solution)`` for embedded tokens (B, T, D); without ``stop``, as it was trained."""

    @abstractmethod
    def num_cache_layers(self, stop: StopRule | None) -> int:
        """Return how many pairs of keys and values a cache keeps for every token."""

    @property
    @abstractmethod
    def recurrent_layers(self) -> range:
        """Which layers a solve evaluates again and again."""

    @abstractmethod
    def layer_uses(self, evaluations: float, *, training: bool) -> list[tuple[int, float]]:
        """Return ``(layers, uses)``: how many layers cost how many forward passes each, for one solve.

        A tracked pass counts three times when ``training``: once forward and twice on the way back.
        """

    def flops_per_token(self, length: int, evaluations: float = 1.0, *, training: bool = False) -> float:
        """Return the floating-point operations per token of a sequence of ``length``, two per multiply-add.

        Matrix products only, attention over the causal half. ``evaluations`` is how many a solve makes (for a looped model,
        how many iterations). Recomputation for the sake of memory is not counted.
        """
        config, layer = self.config, self.model.layers[0]
        matrices = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
        attention = (
            config.num_attention_heads * config.head_width * (length + 1)
        )  # half of 2 · T · D, for qk and for av
        passes = sum(layers * uses for layers, uses in self.layer_uses(evaluations, training=training))
        head = config.vocab_size * config.hidden_size * (3 if training else 1)
        return 2.0 * (passes * (matrices + attention) + head)

    def fsdp_units(self) -> list[tuple[list[nn.Module], bool]]:
        """Return which layers' weights are gathered as one where they are divided among processes, and whether they then stay.

        Those that are evaluated again and again do, until gradients have passed.
        """
        layers = list(self.model.layers)
        once = [([layer], False) for i, layer in enumerate(layers) if i not in self.recurrent_layers]
        again = [layers[i] for i in self.recurrent_layers]
        return [*once, (again, True)] if again else once

    def diagnostics(self, input_ids: Tensor) -> dict[str, float]:
        """Return figures about the model's inside on a batch, for the log."""
        return {}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        depth: int | None = None,
        tolerance: float | None = None,
        max_evaluations: int | None = None,
        logits_to_keep: int | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> LanguageModelOutput:
        """Read tokens and predict the next ones.

        Parameters
        ----------
        input_ids, inputs_embeds
            (B, T) or (B, T, D); one of them.
        attention_mask
            (B, T), zero at padding, left or right; with a cache (B, P + T), for the P tokens in it too.
        position_ids
            (B, T). Without a cache, wherever they do not go on by one, a new document starts, which does not see the ones before.
        labels
            (B, T), as ``input_ids``; each is predicted from the tokens before it, −100 is left out.
        depth
            ``None`` solves to tolerance; n makes n evaluations; 0 decodes where a solve starts: the proposal, or zero in models
            that start from nothing.
        tolerance, max_evaluations
            Instead of the configuration's.
        logits_to_keep
            How many of the last positions get logits, 0 for all. By default all without ``labels``, none with them.
        cache
            What was kept of the P tokens before, to which these are added. Stay with one budget: the equilibrium and
            fixed depths are kept as different keys and values.
        use_cache
            Start a cache where none is given, and return it.

        Raises
        ------
        DataError, ConfigError
            For sequences beyond ``max_position_embeddings``, ids outside the vocabulary, a cache that does not fit.
        """
        if output_attentions or output_hidden_states:  # PEFT and others name them with None
            raise ConfigError("attentions and hidden states of layers are not returned: every evaluation has its own.")
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("give either input_ids or inputs_embeds.")
        if input_ids is not None and (input_ids.ndim != 2 or input_ids.shape[1] == 0):
            raise DataError(f"input_ids of shape {tuple(input_ids.shape)}: give (B, T), at least one token a row.")
        if logits_to_keep is not None and not (isinstance(logits_to_keep, int) and logits_to_keep >= 0):
            raise ConfigError(f"logits_to_keep={logits_to_keep!r}: give a whole number from 0 up.")
        if cache is None and use_cache:
            cache = DynamicCache()
        x: Any = inputs_embeds if input_ids is None else self.model.embed_tokens(self._checked(input_ids))
        stop = self._stop(depth, tolerance, max_evaluations)
        context = self._context(x, attention_mask, position_ids, cache, self.num_cache_layers(stop), self._kind(stop))
        proposal, hidden, solution = self.refine(x, context, stop)
        normed = self.model.norm(hidden)
        loss = None if labels is None else next_token_loss(normed, self.lm_head.weight, labels, self.token_loss)
        keep = logits_to_keep if logits_to_keep is not None else (0 if labels is None else None)
        logits = None if keep is None else self.lm_head(normed[:, -keep:])
        return LanguageModelOutput(
            loss=loss, logits=logits, proposal=proposal, hidden=hidden, solution=solution, cache=cache
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in ``transformers``, with the budget (``depth``, ``tolerance``, ``max_evaluations``) among the arguments.

        Where none of the three is given, the budget stored in the generation config holds.
        """
        if all(kwargs.get(name) is None for name in BUDGET):
            given = getattr(kwargs.get("generation_config"), "budget", None)
            kwargs |= given or getattr(self.generation_config, "budget", None) or {}
        require_resolvable(kwargs.get("tolerance"), self.dtype)
        return super().generate(*args, **kwargs)

    def store_budget(
        self, *, depth: int | None = None, tolerance: float | None = None, max_evaluations: int | None = None
    ) -> None:
        """Put ``depth``, or ``tolerance`` and ``max_evaluations``, into the generation config, instead of what was there.

        They lie there as one entry, ``budget``: ``generate`` would keep arguments named like entries of the config to itself.
        """
        self._stop(depth, tolerance, max_evaluations)
        budget = dict(zip(BUDGET, (depth, tolerance, max_evaluations), strict=True))
        config: Any = self.generation_config
        config.budget = {name: value for name, value in budget.items() if value is not None}
        config._from_model_config = False  # or a stored budget would be dropped on loading

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None, **others: Any) -> Tensor | None:
        """Keep ``generate`` from making masks of its own for static caches: forward makes them."""
        return attention_mask

    def _checked(self, input_ids: Tensor) -> Tensor:
        if input_ids.device.type == "cpu" and input_ids.numel():
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.config.vocab_size:
                raise DataError(
                    f"token id {low if low < 0 else high} lies outside the vocabulary of {self.config.vocab_size}; "
                    "tokenise with the model's own tokenizer."
                )
        return input_ids

    def _context(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        positions: Tensor | None,
        cache: Cache | None = None,
        num_cache_layers: int = 0,
        kind: str = "",
    ) -> AttentionContext:
        batch, length, _ = x.shape
        config, documents = self.config, positions
        past: int | Tensor = 0
        size = length
        if cache is not None:
            shape = (batch, config.num_kv_heads, config.head_width)
            past = prepare_cache(cache, num_cache_layers, shape, x, kind, length)
            size, _ = cache.get_mask_sizes(length, 0)
        self._require_room(past, length)
        if positions is not None and positions.shape[-1] != length:
            raise DataError(f"position_ids of shape {tuple(positions.shape)} do not fit {length} tokens.")
        if attention_mask is not None and attention_mask.shape != (batch, past + length):
            raise DataError(
                f"attention_mask of shape {tuple(attention_mask.shape)}: {batch} rows of {int(past)} tokens in the cache and "
                f"{length} new ones need ({batch}, {int(past) + length})."
            )
        if attention_mask is not None and bool((attention_mask != 0).all()):
            attention_mask = None
        counted = None if attention_mask is None else (attention_mask.long().cumsum(dim=1) - 1)[:, -length:]
        if positions is None:
            positions = past + torch.arange(length, device=x.device) if counted is None else counted.clamp_min(0)
            positions, documents = positions.expand(batch, length), None
        elif bool((positions.diff(dim=1) == 1).all()) or (
            attention_mask is not None and bool(((positions == counted) | (attention_mask[:, -length:] == 0)).all())
        ):
            documents = None
        elif cache is not None:
            raise ConfigError("packed documents are read without a cache: their position_ids do not go on by one.")
        return AttentionContext(
            rotary=rotary(positions, config.head_width, config.rope_theta),
            mask=make_attention_mask(length, size, past, attention_mask, documents),
            is_real=None if attention_mask is None else (attention_mask[:, -length:] != 0)[..., None],
            cache=cache,
            past=past,
        )

    def _require_room(self, past: int | Tensor, length: int) -> None:
        most = self.config.max_position_embeddings
        if past + length > most:
            raise DataError(
                f"{int(past) + length} tokens are more than the {most} that the model knows positions for; "
                "shorten the text, or generate fewer tokens."
            )

    def _kind(self, stop: StopRule | None) -> str:
        """Name what a cache keeps under ``stop``."""
        return "a fixed depth" if stop and stop.is_fixed_depth else "the equilibrium"

    def _stop(self, depth: int | None, tolerance: float | None, max_evaluations: int | None) -> StopRule | None:
        config = self.config
        default = Tolerance(
            rtol=config.tolerance,
            max_evaluations=config.max_evaluations,
            min_evaluations=min(config.min_evaluations, config.max_evaluations),
        )
        return stop_rule(depth, tolerance, max_evaluations, default=default)

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, ZeroInitLinear):  # every layer starts as the identity, every update at its fixed point
            nn.init.zeros_(module.weight)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, LayerScale):
            module.reset_parameters()


class TokenLoss(CompiledBlock):
    """Summed cross-entropy, in nats, of ``labels`` (N,) without −100s, given ``x`` (N, D) and the head's ``weight`` (V, D)."""

    def forward(self, x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, weight).float(), labels, reduction="sum")


def next_token_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, token_loss: TokenLoss, *, chunk: int = CHUNK
) -> Tensor:
    """Return the mean cross-entropy, in nats, of ``labels[:, t + 1]`` given ``hidden[:, t]``, without −100s.

    Logits exist for ``chunk`` tokens at a time and are made again on the way back.

    Parameters
    ----------
    hidden
        (B, T, D).
    weight
        (V, D).
    labels
        (B, T).
    """
    if labels.shape != hidden.shape[:2]:
        raise DataError(f"labels of shape {tuple(labels.shape)} do not fit {tuple(hidden.shape[:2])} tokens.")
    x, y = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    pieces = list(zip(x.split(chunk), y.split(chunk), strict=True))
    again = len(pieces) > 1 and torch.is_grad_enabled()
    sums = [
        checkpoint(token_loss, a, weight, b, use_reentrant=False) if again else token_loss(a, weight, b)
        for a, b in pieces
    ]
    return torch.stack(sums).sum() / (y != -100).sum().clamp_min(1)
