"""The decoder that all language models share: embedding, layers under Qwen3's names, last norm, masks and positions.

A model adds ``refine``, which turns embedded tokens into output embeddings.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from attractor.errors import ConfigError, DataError
from attractor.models.budget import BUDGET, reachable_tolerance, stop_rule
from attractor.models.language.config import LanguageModelConfig
from attractor.models.language.inference.cache import EquilibriumCache
from attractor.models.language.inference.context import AttentionContext, TokenContext
from attractor.nn.transformer import DecoderLayer, LayerScale, RMSNorm, ZeroInitLinear, make_attention_mask
from attractor.solve import Solution, StopRule, Tolerance
from attractor.solve.randomness import checkpoint_contexts

# Arguments that collators, trainers and generation pass to every model, and that change nothing here.
IGNORED_ARGUMENTS = {
    *("cache_position", "output_router_logits", "token_type_ids", "seq_idx", "tokenizer", "assistant_tokenizer"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
}


def accept_past_key_values(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``forward`` take its ``cache`` under the name that models of ``transformers`` use, too."""

    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if (given := kwargs.pop("past_key_values", None)) is not None:
            kwargs["cache"] = given
        return forward(*args, **kwargs)

    return call


class SolvedOutput:
    """What outputs of our models hold besides the entries of stock outputs. Tuples do not contain it.

    Attributes
    ----------
    proposal, hidden
        (B, T, D): the backbone's output embeddings, and the refined ones that are decoded, before the last norm.
    solution
        Residual, evaluations (B, T) and outcome of the solve; None where nothing is solved.
    """

    NAMES = ("proposal", "hidden", "solution")

    def to_tuple(self) -> tuple[Any, ...]:
        entries: Any = self
        return tuple(value for name, value in entries.items() if name not in self.NAMES)


@dataclass
class DecoderOutput(SolvedOutput, BaseModelOutputWithPast):
    """The output of a :class:`Decoder`: ``last_hidden_state`` (B, T, D) is ``hidden`` after the last norm."""

    proposal: Tensor | None = None
    hidden: Tensor | None = None
    solution: Solution | None = None


class LanguageModelBase(PreTrainedModel):
    """What ``transformers`` needs to know about our models."""

    config: LanguageModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012, as transformers declares it

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


class Decoder(LanguageModelBase):
    """Embedding, layers and last norm, under the names of ``Qwen3Model``; ``refine`` decides how the layers are used."""

    def __init__(self, config: LanguageModelConfig, layers: Iterable[DecoderLayer]) -> None:
        config.num_key_value_heads, config.head_dim = config.num_kv_heads, config.head_width  # libraries read numbers
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False

    @abstractmethod
    def refine(self, x: Tensor, context: TokenContext, stop: StopRule | None) -> tuple[Tensor, Tensor, Solution | None]:
        """Return ``(proposal, hidden, solution)`` for embedded tokens (B, T, D); without ``stop``, as in training."""

    @abstractmethod
    def default_stop_rule(self, *, is_padded: bool = False) -> StopRule:
        """Return the stop rule of the configuration, for training or evaluation."""

    @abstractmethod
    def num_cache_layers(self, stop: StopRule | None) -> int:
        """Return how many slots of keys and values a cache needs under ``stop``."""

    def caches_equilibrium(self, stop: StopRule | None) -> bool:
        """Return whether a cache holds an equilibrium under ``stop``, and not a fixed depth."""
        return False

    @accept_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        depth: int | None = None,
        tolerance: float | None = None,
        max_evaluations: int | None = None,
        output_hidden_states: bool | None = None,
        **others: Any,
    ) -> DecoderOutput:
        """Return the output embeddings of tokens. The arguments are those of :meth:`LanguageModel.forward`."""
        _require_supported(others)
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("give either input_ids or inputs_embeds.")
        x: Any = inputs_embeds if input_ids is None else self.embed_tokens(self._checked(input_ids))
        stop = self.stop_rule(depth, tolerance, max_evaluations)
        if self.config.budget and stop is None and self.training and torch.is_grad_enabled():
            self.config.budget = None  # it was chosen for the weights before this step
        slots, equilibrium = range(self.num_cache_layers(stop)), self.caches_equilibrium(stop)
        if use_cache is None:  # as in stock models, wherever a cache can be kept and is not in the way of training
            can_keep = bool(slots) and (equilibrium or stop is None or stop.is_fixed_depth) and position_ids is None
            is_used_later = not (self.training or torch.is_grad_enabled() or torch.compiler.is_exporting())
            use_cache = self.config.use_cache and can_keep and is_used_later
        if cache is None and use_cache:
            cache = DynamicCache()
        if cache is not None and not slots:
            raise ConfigError("this depth uses no layer, so that a cache would stay empty: give use_cache=False.")
        if position_ids is None and others.get("cu_seq_lens_q") is not None:
            raise ConfigError("packed documents are told apart by position_ids that start again at 0; give them too.")
        context = self.make_context(x, attention_mask, position_ids, cache, slots=slots, equilibrium=equilibrium)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        context.states = [x] if output_hidden_states else None
        proposal, hidden, solution = self.refine(x, context, stop)
        normed = self.norm(hidden)
        if context.states is not None:
            context.states[len(context.states) - (solution is None) :] = [
                normed
            ]  # as in stock models, the last is normed
        return DecoderOutput(
            last_hidden_state=normed,
            cache=cache,
            hidden_states=None if context.states is None else tuple(context.states),
            proposal=proposal,
            hidden=hidden,
            solution=solution,
        )

    def run(
        self, x: Tensor, context: AttentionContext, first: int, last: int, states: list[Tensor] | None = None
    ) -> Tensor:
        """Return ``x`` (B, T, D) after layers ``first`` to ``last − 1``; each layer's output is appended to ``states``."""
        for index in range(first, last):
            layer, attend = self.layers[index], context.attend(index)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, context.rotary, attend, use_reentrant=False, context_fn=checkpoint_contexts)
            else:
                x = layer(x, context.rotary, attend)
            if states is not None:
                states.append(x)
        return x

    def stop_rule(
        self, depth: int | None = None, tolerance: float | None = None, max_evaluations: int | None = None
    ) -> StopRule | None:
        """Return the stop rule of a budget, see :func:`attractor.models.budget.stop_rule`.

        In evaluation mode, the configuration's ``budget`` is used if none is given.
        """
        config = self.config
        if config.budget and not self.training and depth is tolerance is max_evaluations is None:
            depth, tolerance, max_evaluations = (config.budget.get(name) for name in BUDGET)
            tolerance = tolerance and max(tolerance, reachable_tolerance(self.dtype))
        default = Tolerance(
            rtol=self.default_tolerance,
            max_evaluations=config.max_evaluations,
            min_evaluations=min(config.min_evaluations, config.max_evaluations),
        )
        return stop_rule(depth, tolerance, max_evaluations, default=default)

    @property
    def default_tolerance(self) -> float:
        """The configuration's tolerance, or what the dtype of the states can reach if that is coarser."""
        return max(self.config.tolerance, reachable_tolerance(self.dtype))

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
        """Return what the layers need to know about the tokens ``x`` (B, T, D); arguments as in :meth:`forward`.

        ``slots`` of ``cache`` will be filled, with an ``equilibrium`` or at a fixed depth.
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
            rotary=config.rotary(positions),
            masks={
                window: make_attention_mask(length, size, past, padding, documents, window)
                for window in {config.window_of(i) for i in range(config.num_hidden_layers)}
            },
            window_of=config.window_of,
            is_real=None if padding is None else (padding[:, -length:] != 0)[..., None],
            cache=kept,
        )

    def require_positions(self, past: int | Tensor, length: int) -> None:
        """Refuse tokens beyond the last position of the model. Raises DataError."""
        most = self.config.num_positions
        if past + length > most:
            raise DataError(
                f"{int(past) + length} tokens are more than the {most} that the model has positions for; "
                "shorten the text, or generate fewer tokens."
            )

    def _checked(self, input_ids: Tensor) -> Tensor:
        if input_ids.ndim != 2 or input_ids.shape[1] == 0:
            raise DataError(f"input_ids of shape {tuple(input_ids.shape)}: give (B, T), at least one token a row.")
        if input_ids.is_cpu and input_ids.numel() and not torch.compiler.is_exporting():
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
        if attention_mask is None or torch.compiler.is_exporting():  # a graph holds for every mask
            return attention_mask
        return None if bool((attention_mask != 0).all()) else attention_mask

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
        if position_ids.ndim == 1:
            position_ids = position_ids[None]
        if position_ids.shape not in ((batch, length), (1, length)):
            raise DataError(f"position_ids of shape {tuple(position_ids.shape)} do not fit {length} tokens.")
        if torch.compiler.is_exporting() and not has_cache:
            return position_ids, position_ids
        if bool((position_ids.diff(dim=1) == 1).all()) or (
            padding is not None and bool(((position_ids == counted) | (padding[:, -length:] == 0)).all())
        ):
            return position_ids, None
        if has_cache:
            raise ConfigError("packed documents are read without a cache: their position_ids do not increase by one.")
        return position_ids, position_ids


def _require_supported(arguments: dict[str, Any]) -> None:
    """Refuse arguments of stock models that we do not support, and those that no model has."""
    if arguments.get("output_attentions"):  # PEFT and others pass None
        raise ConfigError("attentions are not returned: every evaluation has its own; leave out output_attentions.")
    if arguments.get("is_causal") is False:
        raise ConfigError("is_causal=False: a language model reads only earlier tokens; leave it out.")
    for name in sorted(arguments.keys() - IGNORED_ARGUMENTS - {"output_attentions", "is_causal"}):
        raise TypeError(f"forward() got an unexpected keyword argument {name!r}")
