"""What all language models share: embedding, decoder layers under Qwen3's names, output head, loss, generation.

A model adds ``refine``, which turns embedded tokens into output embeddings.
"""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from attractor.errors import ConfigError, DataError
from attractor.models.budget import BUDGET, stop_rule
from attractor.models.language.config import LanguageModelConfig
from attractor.models.language.inference.cache import EquilibriumCache
from attractor.models.language.inference.context import AttentionContext, TokenContext
from attractor.models.language.loss import TokenLoss, next_token_loss
from attractor.nn.rotary import rotary_angles
from attractor.nn.transformer import DecoderLayer, LayerScale, RMSNorm, ZeroInitLinear, make_attention_mask
from attractor.solve import Solution, StopRule, Tolerance, require_resolvable
from attractor.solve.randomness import checkpoint_contexts


@dataclass
class LanguageModelOutput(ModelOutput):
    """What a forward pass returns.

    Attributes
    ----------
    loss
        Mean cross-entropy of the next tokens in nats, if ``labels`` were given.
    logits
        (B, T, V); None if ``labels`` were given and ``logits_to_keep`` was not.
    proposal, hidden
        (B, T, D): the backbone's output embeddings, and the refined ones that are decoded, before the last norm.
    solution
        Residual, evaluations (B, T) and outcome of the solve; None where nothing is solved.
    cache
        Keys and values of all tokens so far, for the next call; None if none are kept.
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

    def run(self, x: Tensor, context: AttentionContext, first: int, last: int) -> Tensor:
        """Return ``x`` (B, T, D) after layers ``first`` to ``last − 1``."""
        for index in range(first, last):
            layer, attend = self.layers[index], context.attend(index)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, context.rotary, attend, use_reentrant=False, context_fn=checkpoint_contexts)
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
    def refine(self, x: Tensor, context: TokenContext, stop: StopRule | None) -> tuple[Tensor, Tensor, Solution | None]:
        """Return ``(proposal, hidden, solution)`` for embedded tokens (B, T, D); without ``stop``, as in training."""

    @abstractmethod
    def num_cache_layers(self, stop: StopRule | None) -> int:
        """Return how many slots of keys and values a cache needs under ``stop``."""

    @property
    @abstractmethod
    def recurrent_layers(self) -> range:
        """The layers that a solve evaluates repeatedly."""

    @abstractmethod
    def layer_uses(self, evaluations: float, *, training: bool) -> list[tuple[int, float]]:
        """Return pairs ``(layers, uses)`` for one solve: so many layers cost so many forward passes each.

        With ``training``, a pass that carries gradients counts three times: once forward and twice backward.
        """

    def caches_equilibrium(self, stop: StopRule | None) -> bool:
        """Return whether a cache holds an equilibrium under ``stop``, and not a fixed depth."""
        return False

    def flops_per_token(self, length: int, evaluations: float = 1.0, *, training: bool = False) -> float:
        """Return the floating-point operations per token of a sequence of ``length`` tokens.

        A multiply-add counts as two. Counts matrix products, and the causal half of attention. ``evaluations`` is the
        number of evaluations of a solve (of a looped model: iterations). Recomputation by gradient checkpointing is not
        counted.
        """
        config, layer = self.config, self.model.layers[0]
        matrices = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
        # Half of 2 · T · D, for the scores and for the weighted sum.
        attention = config.num_attention_heads * config.head_width * (length + 1)
        passes = sum(layers * uses for layers, uses in self.layer_uses(evaluations, training=training))
        head = config.vocab_size * config.hidden_size * (3 if training else 1)
        return 2.0 * (passes * (matrices + attention) + head)

    def fsdp_units(self) -> list[tuple[list[nn.Module], bool]]:
        """Return pairs ``(layers, stays)``: layers that FSDP gathers at the same time, and whether it keeps them.

        Layers that a solve evaluates repeatedly keep their gathered weights until the backward pass is done.
        """
        layers = list(self.model.layers)
        once = [([layer], False) for i, layer in enumerate(layers) if i not in self.recurrent_layers]
        repeated = [layers[i] for i in self.recurrent_layers]
        return [*once, (repeated, True)] if repeated else once

    def diagnostics(self, input_ids: Tensor) -> dict[str, float]:
        """Return figures about the model's state on a batch (B, T), for the training log."""
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
            (B, T) or (B, T, D); give one of them.
        attention_mask
            (B, T), zero at padding, left or right. With a cache of P tokens: (B, P + T).
        position_ids
            (B, T). Without a cache, a new document starts wherever they do not increase by one; it does not see earlier
            ones.
        labels
            (B, T), as ``input_ids``; each token is predicted from the tokens before it, −100 is ignored.
        depth
            None solves to tolerance; n makes n evaluations; 0 decodes the start of the solve: the proposal, or zero in
            a model without a proposal.
        tolerance, max_evaluations
            In place of the configuration's.
        logits_to_keep
            How many of the last positions get logits, 0 for all. Default: all without ``labels``, none with them.
        cache
            Keys and values of the P tokens before these; it is extended. Use it with one budget only: an equilibrium
            and a fixed depth have different keys and values.
        use_cache
            Start a cache if none is given, and return it.

        Raises
        ------
        DataError, ConfigError
            For sequences beyond ``max_position_embeddings``, ids outside the vocabulary, a cache that does not fit.
        """
        if output_attentions or output_hidden_states:  # PEFT and others pass them as None
            raise ConfigError("attentions and hidden states of layers are not returned: every evaluation has its own.")
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("give either input_ids or inputs_embeds.")
        if logits_to_keep is not None and not (isinstance(logits_to_keep, int) and logits_to_keep >= 0):
            raise ConfigError(f"logits_to_keep={logits_to_keep!r}: give a whole number from 0 up.")
        if cache is None and use_cache:
            cache = DynamicCache()
        x: Any = inputs_embeds if input_ids is None else self.model.embed_tokens(self._checked(input_ids))
        stop = self.stop_rule(depth, tolerance, max_evaluations)
        slots, equilibrium = range(self.num_cache_layers(stop)), self.caches_equilibrium(stop)
        if cache is not None and not slots:
            raise ConfigError("this depth uses no layer, so that a cache would stay empty: give use_cache=False.")
        context = self.make_context(x, attention_mask, position_ids, cache, slots=slots, equilibrium=equilibrium)
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

        Without any of the three, the budget of the generation config is used, see :meth:`store_budget`.
        """
        if all(kwargs.get(name) is None for name in BUDGET):
            given = getattr(kwargs.get("generation_config"), "budget", None)
            kwargs |= given or getattr(self.generation_config, "budget", None) or {}
        require_resolvable(kwargs.get("tolerance"), self.dtype)
        return super().generate(*args, **kwargs)

    def store_budget(
        self, *, depth: int | None = None, tolerance: float | None = None, max_evaluations: int | None = None
    ) -> None:
        """Store ``depth``, or ``tolerance`` and ``max_evaluations``, in the generation config, in place of an earlier
        budget.

        They are one entry, ``budget``: ``generate`` does not pass on arguments that are named like entries of the
        config.
        """
        self.stop_rule(depth, tolerance, max_evaluations)
        budget = dict(zip(BUDGET, (depth, tolerance, max_evaluations), strict=True))
        config: Any = self.generation_config
        config.budget = {name: value for name, value in budget.items() if value is not None}
        config._from_model_config = False  # otherwise loading would drop a stored budget

    def stop_rule(
        self, depth: int | None = None, tolerance: float | None = None, max_evaluations: int | None = None
    ) -> StopRule | None:
        """Return the stop rule of a budget, see :func:`attractor.models.budget.stop_rule`."""
        config = self.config
        default = Tolerance(
            rtol=config.tolerance,
            max_evaluations=config.max_evaluations,
            min_evaluations=min(config.min_evaluations, config.max_evaluations),
        )
        return stop_rule(depth, tolerance, max_evaluations, default=default)

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None, **others: Any) -> Tensor | None:
        """Keep ``generate`` from making its own masks for static caches: forward makes them."""
        return attention_mask

    def make_context(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        *,
        slots: range = range(0),
        equilibrium: bool = False,
    ) -> TokenContext:
        """Return what the layers need to know about the tokens ``x`` (B, T, D).

        Parameters
        ----------
        attention_mask, position_ids, cache
            As in :meth:`forward`.
        slots, equilibrium
            The slots of ``cache`` that will be filled, and whether with an equilibrium.
        """
        config = self.config
        batch, length, _ = x.shape
        past: int | Tensor = 0
        size, kept = length, None
        if cache is not None:
            heads, head_dim = config.num_kv_heads, config.head_width
            kept = EquilibriumCache.open(cache, slots, equilibrium=equilibrium, x=x, num_heads=heads, head_dim=head_dim)
            past = kept.past
            size, _ = cache.get_mask_sizes(length, slots.start)
        self.require_positions(past, length)
        padding = self._padding(attention_mask, batch, past, length)
        positions, documents = self._positions(position_ids, padding, past, x, has_cache=cache is not None)
        return TokenContext(
            rotary=rotary_angles(positions[:, None, :, None], config.head_width, config.rope_theta),
            mask=make_attention_mask(length, size, past, padding, documents),
            is_real=None if padding is None else (padding[:, -length:] != 0)[..., None],
            cache=kept,
        )

    def require_positions(self, past: int | Tensor, length: int) -> None:
        """Refuse tokens beyond the last position of the model. Raises DataError."""
        most = self.config.max_position_embeddings
        if past + length > most:
            raise DataError(
                f"{int(past) + length} tokens are more than the {most} that the model has positions for; "
                "shorten the text, or generate fewer tokens."
            )

    def _checked(self, input_ids: Tensor) -> Tensor:
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise DataError(f"input_ids of shape {tuple(input_ids.shape)}: give (B, T), at least one token a row.")
        if input_ids.device.type == "cpu" and input_ids.numel():
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.config.vocab_size:
                raise DataError(
                    f"token id {low if low < 0 else high} lies outside the vocabulary of {self.config.vocab_size}; "
                    "tokenise with the model's own tokenizer."
                )
        return input_ids

    @staticmethod
    def _padding(attention_mask: Tensor | None, batch: int, past: int | Tensor, length: int) -> Tensor | None:
        """Return the attention mask (B, past + T), or None where it hides nothing."""
        if attention_mask is not None and attention_mask.shape != (batch, past + length):
            raise DataError(
                f"attention_mask of shape {tuple(attention_mask.shape)}: {batch} rows of {int(past)} tokens in the cache and "
                f"{length} new ones need ({batch}, {int(past) + length})."
            )
        return None if attention_mask is None or bool((attention_mask != 0).all()) else attention_mask

    @staticmethod
    def _positions(
        position_ids: Tensor | None, padding: Tensor | None, past: int | Tensor, x: Tensor, *, has_cache: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the positions (B, T) of the tokens ``x``, and once more where they say that documents are packed."""
        batch, length, _ = x.shape
        counted = None if padding is None else (padding.long().cumsum(dim=1) - 1)[:, -length:]
        if position_ids is None:
            positions = past + torch.arange(length, device=x.device) if counted is None else counted.clamp_min(0)
            return positions.expand(batch, length), None
        if position_ids.shape[-1] != length:
            raise DataError(f"position_ids of shape {tuple(position_ids.shape)} do not fit {length} tokens.")
        if bool((position_ids.diff(dim=1) == 1).all()) or (
            padding is not None and bool(((position_ids == counted) | (padding[:, -length:] == 0)).all())
        ):
            return position_ids, None
        if has_cache:
            raise ConfigError("packed documents are read without a cache: their position_ids do not increase by one.")
        return position_ids, position_ids

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
