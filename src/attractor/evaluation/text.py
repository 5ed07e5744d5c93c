"""How well a language model predicts text it has not seen, and the scoring of sequences that every language task stands on.

A document is read through a sliding window, so that each of its tokens is predicted exactly once and from as much context as the
window holds. Bits per byte count the bytes of the text, not tokens, and so compare models with different tokenizers.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attractor.errors import ConfigError, DataError
from attractor.solve import Status, require_resolvable


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a model thinks of tokens 1 to T − 1 of its input; all fields (B, T − 1).

    Attributes
    ----------
    log_probabilities
        Of each token given those before it, in nats, float32.
    is_greedy
        Whether it is the one the model would have chosen.
    evaluations, residual, is_final
        Of the solve that predicted it; None where the model solves nothing, ``is_final`` also where no tolerance was set.
    """

    log_probabilities: Tensor
    is_greedy: Tensor
    evaluations: Tensor | None = None
    residual: Tensor | None = None
    is_final: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The end of one sequence, scored: sums over its ``num_tokens`` tokens, and whether greedy decoding would have written it.

    ``evaluations``, ``residual`` and ``num_final`` are None where they are in :class:`Predictions`.
    """

    num_tokens: int
    log_likelihood: float
    is_greedy: bool
    evaluations: int | None
    residual: float | None
    num_final: int | None


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """How well held-out text was predicted.

    Attributes
    ----------
    num_documents, num_tokens, num_bytes
        What was scored; bytes of UTF-8, whatever the tokenizer.
    nats
        Minus the log-likelihood of it all.
    evaluations, residual
        Mean per scored token; None where the model solves nothing. At depth 0 no residual is measured, and it is NaN.
    final
        Share of scored tokens whose solve ended below tolerance; None where none was set.
    """

    num_documents: int
    num_tokens: int
    num_bytes: int
    nats: float
    evaluations: float | None
    residual: float | None
    final: float | None

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """Per token, so comparable only between models with one tokenizer."""
        return perplexity(self.nats / self.num_tokens)


def score_text(
    model: Any,
    tokenizer: Any,
    documents: Iterable[str],
    *,
    length: int,
    stride: int | None = None,
    batch_size: int = 8,
    advance: Callable[[int, int], None] = lambda done, total: None,
    **budget: float | None,
) -> TextScore:
    """Score every token of every document once.

    Parameters
    ----------
    model
        Any causal language model of ``transformers``, in evaluation mode.
    tokenizer
        Its own. The end-of-text token stands before every document.
    documents
        Held-out text.
    length
        Tokens the window holds.
    stride
        How far it moves; by default half its length. Every token is predicted from at least ``length − stride`` tokens where
        there are as many.
    batch_size
        Windows at a time. Logits exist for one batch.
    advance
        Told how many windows of how many are done.
    budget
        ``depth``, or ``tolerance`` and ``max_evaluations``, for models that solve; None is left out.

    Raises
    ------
    ConfigError
        For a window that cannot work, or a budget that the model does not know.
    DataError
        Where there is no text.
    """
    stride = max(length // 2, 1) if stride is None else stride
    if not 1 <= stride < length:
        raise ConfigError(f"a window of length={length} cannot move by stride={stride}; give 1 ≤ stride < length.")
    if length > max_length(model):
        raise ConfigError(f"length={length} exceeds the model's {max_length(model)} positions; give a shorter window.")
    windows: list[tuple[Tensor, int]] = []
    num_documents = num_bytes = 0
    for text in documents:
        num_documents, num_bytes = num_documents + 1, num_bytes + len(text.encode())
        windows += sliding_windows(encode(tokenizer, text), length, stride)
    if not windows:
        raise DataError("there is no text to score; give documents that are not empty.")
    scores = score_continuations(model, windows, batch_size=batch_size, advance=advance, **budget)
    num_tokens = sum(s.num_tokens for s in scores)

    def mean(values: list[Any]) -> float | None:
        return None if None in values else math.fsum(values) / num_tokens

    return TextScore(
        num_documents=num_documents,
        num_tokens=num_tokens,
        num_bytes=num_bytes,
        nats=-math.fsum(s.log_likelihood for s in scores),
        evaluations=mean([s.evaluations for s in scores]),
        residual=mean([s.residual for s in scores]),
        final=mean([s.num_final for s in scores]),
    )


def sliding_windows(tokens: Tensor, length: int, stride: int) -> list[tuple[Tensor, int]]:
    """Cut ``tokens`` (T,) into windows and say where in each the tokens begin that no earlier window predicts."""
    windows, scored = [], 1  # nothing comes before the first token to predict it from
    for begin in range(0, len(tokens), stride):
        if scored == len(tokens):
            break
        windows.append((tokens[begin : begin + length], scored - begin))
        scored = min(begin + length, len(tokens))
    return windows


def encode(tokenizer: Any, text: str) -> Tensor:
    """Return the tokens of ``text`` behind the end-of-text token, (T,) int64. What looks like a special token is text."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ConfigError("the tokenizer has neither a bos_token nor an eos_token to put before a text; set one.")
    return torch.tensor(
        [first, *tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]]
    )


def perplexity(nats: float) -> float:
    """Return e to the power of a mean loss, infinite where floating point ends."""
    return math.inf if nats > 700 else math.exp(nats)


def max_length(model: Any) -> int:
    """Return how many tokens the model knows positions for, as far as its configuration says."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None) or 1 << 30


def known_budget(model: Any, budget: dict[str, float | None]) -> dict[str, float]:
    """Return what of ``budget`` is set, after checking that the model's ``forward`` names it and does not swallow it."""
    given = {name: value for name, value in budget.items() if value is not None}
    known = inspect.signature(model.forward).parameters
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{type(model).__name__} has no {name} to set; leave it out for a model that solves nothing."
            )
    if "tolerance" in given:
        require_resolvable(given["tolerance"], next((p.dtype for p in model.parameters()), torch.float32))
    return given


@torch.no_grad()
def log_probabilities(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **budget: float | None
) -> Predictions:
    """Read ``input_ids`` (B, T) once, ``attention_mask`` (B, T) zero at padding on the right, and judge every next token."""
    output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **known_budget(model, budget))
    likely, greedy = [], []
    for logits, tokens in zip(output.logits, input_ids, strict=True):  # by row: float32 copies of one at a time
        logits, tokens = logits[:-1].float(), tokens[1:]
        likely.append(logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=1))
        greedy.append(logits.argmax(dim=1) == tokens)
    found = Predictions(log_probabilities=torch.stack(likely), is_greedy=torch.stack(greedy))
    if (solution := getattr(output, "solution", None)) is None:
        return found
    return Predictions(
        log_probabilities=found.log_probabilities,
        is_greedy=found.is_greedy,
        evaluations=solution.evaluations[:, :-1],
        residual=solution.residual[:, :-1],
        is_final=solution.outcome.status[:, :-1] == Status.CONVERGED if solution.outcome.checked else None,
    )


def score_continuations(
    model: Any,
    sequences: Sequence[tuple[Tensor, int]],
    *,
    batch_size: int = 8,
    advance: Callable[[int, int], None] = lambda done, total: None,
    **budget: float | None,
) -> list[Continuation]:
    """Score each sequence (T,) from its ``start ≥ 1`` to its end, given all before; in the order of ``sequences``."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    order = sorted(
        range(len(sequences)), key=lambda i: -len(sequences[i][0])
    )  # little padding; the largest batch first
    scores: dict[int, Continuation] = {}
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        longest = len(sequences[batch[0]][0])
        input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, i in enumerate(batch):
            input_ids[row, : len(sequences[i][0])] = sequences[i][0]
            mask[row, : len(sequences[i][0])] = 1
        padding = None if bool(mask.all()) else mask.to(device)
        found = log_probabilities(model, input_ids.to(device), padding, **budget)
        for row, i in enumerate(batch):
            tokens, start = sequences[i]
            scores[i] = _continuation(found, row, slice(start - 1, len(tokens) - 1))
        advance(len(scores), len(order))
    return [scores[i] for i in range(len(sequences))]


def _continuation(found: Predictions, row: int, part: slice) -> Continuation:
    def total(values: Tensor | None) -> Any:
        if values is None:
            return None
        part_of_row = values[row, part]
        return (part_of_row.double() if values.is_floating_point() else part_of_row).sum().item()

    return Continuation(
        num_tokens=part.stop - part.start,
        log_likelihood=total(found.log_probabilities),
        is_greedy=bool(found.is_greedy[row, part].all()),
        evaluations=total(found.evaluations),
        residual=total(found.residual),
        num_final=total(found.is_final),
    )
