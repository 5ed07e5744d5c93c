"""What all language models share besides the decoder: output head, loss, generation, counting of operations."""

import sys
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from attractor.errors import ConfigError
from attractor.files import write_text
from attractor.models.language.config import LanguageModelConfig
from attractor.models.language.decoder import LanguageModelBase, SolvedOutput, accept_past_key_values
from attractor.models.language.loss import HAS_LOGITS, TokenDivergence, TokenLoss, next_token_loss, teacher_divergence
from attractor.solve import Solution, Tolerance, require_resolvable


@dataclass
class LanguageModelOutput(SolvedOutput, CausalLMOutputWithPast):
    """What a forward pass returns: the entries of a stock output, and those of :class:`SolvedOutput`.

    Attributes
    ----------
    loss
        Mean cross-entropy of the next tokens in nats, if ``labels`` were given.
    logits
        (B, T, V), at the positions of ``logits_to_keep``.
    cache
        Keys and values of all tokens so far, for the next call; None if none are kept.
    hidden_states
        On request, (B, T, D) each: the embedded tokens, the proposal, and what ``lm_head`` reads.
    """

    proposal: Tensor | None = None
    hidden: Tensor | None = None
    solution: Solution | None = None


def register_with_peft(model_type: str) -> None:
    """Give adapters of PEFT, if that is imported, the layers that they adapt in Llama: the names are the same."""
    constants = sys.modules.get("peft.utils.constants")
    for name, table in vars(constants).items() if constants else ():
        if name.endswith("_MODULES_MAPPING") and "llama" in table:
            table.setdefault(model_type, table["llama"])


CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [attractor-models]
---
An `{kind}`. It loads with `transformers` once the package `attractor-models` is imported:

```python
import attractor.models.language
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER OR NAME")
```
"""


class LanguageModel(LanguageModelBase, GenerationMixin):
    """A causal language model: a decoder and an output head."""

    model_class: ClassVar[type[Any]]
    model: Any
    accepts_loss_kwargs = True
    model_tags = ["attractor-models"]  # noqa: RUF012, as transformers declares it
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__(config)
        register_with_peft(config.model_type)
        self.model = self.model_class(config, initialize=False)  # weights are drawn once, by the last line
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.token_loss, self.token_divergence = TokenLoss(), TokenDivergence()
        self.post_init()

    @property
    @abstractmethod
    def recurrent_layers(self) -> range:
        """The layers that a solve evaluates repeatedly."""

    @abstractmethod
    def layer_uses(self, evaluations: float, *, training: bool) -> list[tuple[int, float]]:
        """Return pairs ``(layers, uses)`` for one solve: so many layers cost so many forward passes each.

        With ``training``, a pass that carries gradients counts three times: once forward and twice backward.
        """

    def single_passes(self, num: int) -> float:
        """Return the cost in training of the first ``num`` layers, each used once, in forward passes of one layer.

        A frozen layer has no gradients of its weights, and none at all if everything before it is frozen too.
        """
        carries, total = bool(self.get_input_embeddings().weight.requires_grad), 0.0
        for layer in self.model.layers[:num]:
            is_trained = any(p.requires_grad for p in layer.parameters())
            total += 1 + is_trained + carries
            carries |= is_trained
        return total

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
        head = config.vocab_size * config.hidden_size * (2 + self.lm_head.weight.requires_grad if training else 1)
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

    def divergence(
        self, output: LanguageModelOutput, teacher: "LanguageModel", labels: Tensor, **inputs: Any
    ) -> Tensor:
        """Return the mean KL divergence, in nats, of the next tokens of ``output`` from those of ``teacher`` at depth 1.

        ``inputs`` are the arguments that ``output`` was computed from; ``labels`` (B, T) says by −100 what not to count.
        """
        with torch.no_grad():
            target = teacher.model(**inputs, depth=1, use_cache=False).last_hidden_state
        hidden = self.model.norm(output.hidden)
        return teacher_divergence(hidden, self.lm_head, target, teacher.lm_head, labels, self.token_divergence)

    @accept_past_key_values
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        depth: int | None = None,
        tolerance: float | None = None,
        max_evaluations: int | None = None,
        return_logits: bool = True,
        **others: Any,
    ) -> LanguageModelOutput:
        """Read tokens and predict the next ones. The arguments are those of stock models, and the budget of the solve.

        Parameters
        ----------
        input_ids, inputs_embeds
            (B, T) or (B, T, D); give one of them.
        attention_mask
            (B, T), zero at padding, left or right. With a cache of P tokens: (B, P + T).
        position_ids
            (B, T) or (T,). Without a cache, a new document starts wherever they do not increase by one; it does not see
            earlier ones.
        cache
            Keys and values of the P tokens before these; it is extended. Use it with one budget only: an equilibrium
            and a fixed depth have different keys and values.
        labels
            (B, T), as ``input_ids``; each token is predicted from the tokens before it, −100 is ignored.
        use_cache
            Start a cache if none is given, and return it. By default in evaluation mode without gradients, unless
            ``position_ids`` are given or the budget allows no cache.
        logits_to_keep
            How many of the last positions get logits, 0 for all; or a tensor of positions. The loss reads all.
        depth
            None solves to tolerance; n makes n evaluations; 0 decodes the start of the solve: the proposal, or zero in
            a model without a proposal.
        tolerance, max_evaluations
            In place of the configuration's.
        return_logits
            False saves memory in training: the logits exist for a few tokens at a time, and only for the loss.
        others
            ``shift_labels`` and ``num_items_in_batch`` for the loss, ``output_hidden_states``, and arguments of stock
            models that change nothing here.

        Raises
        ------
        DataError, ConfigError
            For sequences beyond ``max_position_embeddings``, ids outside the vocabulary, a cache that does not fit.
        """
        if not isinstance(logits_to_keep, Tensor) and (type(logits_to_keep) is not int or logits_to_keep < 0):
            raise ConfigError(f"logits_to_keep={logits_to_keep!r}: give a whole number from 0 up, or positions.")
        loss_arguments = {name: others.pop(name, None) for name in ("shift_labels", "num_items_in_batch")}
        budget = {"depth": depth, "tolerance": tolerance, "max_evaluations": max_evaluations}
        output = self.model(
            input_ids,
            attention_mask,
            position_ids,
            cache,
            inputs_embeds,
            use_cache,
            return_dict=True,
            **budget,
            **others,
        )
        hidden = output.last_hidden_state
        logits: Any = None
        loss = None
        if return_logits:
            logits = self.lm_head(slice_logits_to_keep(hidden, logits_to_keep))
        if labels is not None or loss_arguments["shift_labels"] is not None:
            has_all = logits is not None and type(logits_to_keep) is int and logits_to_keep == 0
            head, x = (HAS_LOGITS, logits) if has_all else (self.lm_head, hidden)
            loss = next_token_loss(x, head, labels, self.token_loss, **loss_arguments)
        return LanguageModelOutput(
            loss=loss,
            logits=logits,
            cache=output.cache,
            hidden_states=output.hidden_states,
            proposal=output.proposal,
            hidden=output.hidden,
            solution=output.solution,
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in ``transformers``, with the budget (``depth``, ``tolerance``, ``max_evaluations``) among the arguments."""
        require_resolvable(kwargs.get("tolerance"), self.dtype)
        in_training = [module for module in self.modules() if module.training]  # as trainers of rewards generate
        self.eval()
        try:
            return super().generate(*args, **kwargs)
        finally:
            for module in in_training:
                module.training = True

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in ``transformers``, with a model card where the folder has none."""
        super().save_pretrained(save_directory, *args, **kwargs)
        card = Path(save_directory) / "README.md"
        if kwargs.get("is_main_process", True) and not card.exists():
            write_text(card, CARD.format(kind=type(self).__name__))

    def budget(self, **given: float | None) -> dict[str, float]:
        """Return the budget of a call in evaluation mode that gets the arguments ``given``.

        It is ``depth``, or ``tolerance`` and ``max_evaluations``; nothing for a model that solves nothing.
        """
        if not self.recurrent_layers:
            return {}
        stop = self.model.stop_rule(**given) or self.model.default_stop_rule()
        if isinstance(stop, Tolerance):
            return {"tolerance": stop.rtol, "max_evaluations": stop.max_evaluations}
        return {"depth": stop.n}

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None, **others: Any) -> Tensor | None:
        """Keep ``generate`` from making its own masks for static caches: forward makes them."""
        return attention_mask
