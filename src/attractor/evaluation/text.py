"""Score text with a causal language model: bits per byte and perplexity of documents, log-likelihoods of continuations.

A document is read through a sliding window. Each token is predicted exactly once, with as much context as the window allows.
Bits per byte count the bytes of the text instead of its tokens, so they compare models with different tokenizers.
"""

import inspect
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from attractor.errors import ConfigError, DataError
from attractor.models.budget import stop_rule
from attractor.nn import input_device
from attractor.solve import Tolerance, require_resolvable

DEFAULT_WINDOW = 2048  # tokens of the sliding window, if the caller gives no length and the model has more positions


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """Scores of tokens 1 to T − 1 of an input. All fields have shape (B, T − 1).

    Attributes
    ----------
    log_probs
        Log-probability of each token given all tokens before it, in nats, float32.
    is_greedy
        Whether the token is the most likely one.
    evaluations, residual, is_converged
        The solve that predicted the token, and whether its residual is below the tolerance. None for models without a
        solve; ``is_converged`` is also None without a tolerance.
    """

    log_probs: Tensor
    is_greedy: Tensor
    evaluations: Tensor | None = None
    residual: Tensor | None = None
    is_converged: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ContinuationScore:
    """Sums over the last ``num_tokens`` tokens of one sequence; ``is_greedy`` holds when it does for each of them."""

    num_tokens: int
    log_likelihood: float
    is_greedy: bool
    evaluations: float | None
    residual: float | None
    num_converged: float | None


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """How well a model predicts held-out text.

    Attributes
    ----------
    num_bytes
        Size of the text in UTF-8.
    nats
        Negative log-likelihood of the text.
    evaluations, residual
        Mean per scored token. None for models without a solve. The residual is NaN at depth 0, which measures none.
    converged_fraction
        Share of scored tokens with a residual below the tolerance; None without a tolerance.
    """

    num_documents: int
    num_tokens: int
    num_bytes: int
    nats: float
    evaluations: float | None
    residual: float | None
    converged_fraction: float | None

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """Perplexity per token. It compares only models with the same tokenizer."""
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
    model, tokenizer
        Any causal language model of ``transformers``, in evaluation mode. See :func:`encode` for what precedes a document.
    length, stride
        Tokens of the sliding window, and by how many it moves; half its length by default. Every token has at least
        ``length − stride`` tokens of context, or all that precede it.
    batch_size
        Windows per batch.
    advance
        Called as ``advance(done, total)`` with numbers of windows.
    budget
        ``depth``, or ``tolerance`` and ``max_evaluations``, for models with a solve. None means not given.

    Raises
    ------
    ConfigError
        For an invalid window, or a budget that the model does not support.
    DataError
        When there is no text.
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
        converged_fraction=mean([s.num_converged for s in scores]),
    )


def sliding_windows(tokens: Tensor, length: int, stride: int) -> list[tuple[Tensor, int]]:
    """Cut ``tokens`` (T,) into windows, each with the index of its first token that no earlier window predicts."""
    windows, scored = [], 1  # the first token has no context
    for begin in range(0, len(tokens), stride):
        if scored == len(tokens):
            break
        windows.append((tokens[begin : begin + length], scored - begin))
        scored = min(begin + length, len(tokens))
    return windows


def encode(tokenizer: Any, text: str) -> Tensor:
    """Return the tokens of a document (T,), see :func:`attractor.data.text.encode`."""
    from attractor.data.text import encode as tokenise  # needs transformers, which evaluating puzzles does not

    return tokenise(tokenizer, text)


def passage(text: str, size: int, rng: random.Random) -> str:
    """Return a random part of ``text`` with at most ``size`` characters, from the beginning of a line when possible."""
    if len(text) <= size:
        return text
    begin = rng.randrange(len(text) - size)
    cut = text[text.find("\n", begin, begin + size // 2) + 1 or begin :][:size]
    return cut.strip() or cut


def token_texts(tokenizer: Any, text: str) -> list[str]:
    """Return the text of each token of ``text``. A character that spans several tokens belongs to the first of them.

    Raises ConfigError for tokenizers that do not report the positions of their tokens.
    """
    if not tokenizer.is_fast:
        raise ConfigError(f"{type(tokenizer).__name__} does not report token positions; give a tokenizer.json.")
    found = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False, return_offsets_mapping=True
    )
    parts, last = [], 0
    for _, end in found["offset_mapping"]:
        parts.append(text[last:end])
        last = max(last, end)
    return parts


def perplexity(nats: float) -> float:
    """Return the exponential of a mean loss, infinite on overflow."""
    return math.inf if nats > 700 else math.exp(nats)


def max_length(model: Any) -> int:
    """Return the number of positions of the model, or a very large number when its configuration does not say."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", None) or 1 << 30


def known_budget(model: Any, budget: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of ``budget`` that are not None.

    Raises ConfigError when ``model.forward`` has no such argument, which stock models would silently ignore, a number
    is invalid, or the model's dtype cannot resolve the tolerance.
    """
    given = {name: value for name, value in budget.items() if value is not None}
    supported = inspect.signature(model.forward).parameters
    for name in given:
        if name not in supported:
            raise ConfigError(
                f"{type(model).__name__} has no {name} setting; leave it out for a model without a solve."
            )
    if given and given.get("depth") != 0:
        stop_rule(**given, default=Tolerance())  # or an invalid number would only be found in the first solve
    if "tolerance" in given:
        require_resolvable(given["tolerance"], next((p.dtype for p in model.parameters()), torch.float32))
    return given


def effective_budget(model: Any, budget: dict[str, float | None]) -> dict[str, float]:
    """Return the budget of the model's calls: what ``budget`` gives, completed by the model's own. Raises as above."""
    known, own = known_budget(model, budget), getattr(model, "budget", None)  # which stock models do not have
    return own(**known) if own is not None else known


@torch.no_grad()
def score_tokens(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **budget: float | None
) -> TokenScores:
    """Score every next token of ``input_ids`` (B, T) in one forward pass. ``attention_mask`` (B, T) is 0 at right padding."""
    output = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **known_budget(model, budget))
    log_probs, greedy = [], []
    for logits, tokens in zip(output.logits, input_ids, strict=True):  # float32 copies of one row at a time
        logits, tokens = logits[:-1].float(), tokens[1:]
        log_probs.append(logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(dim=1))
        greedy.append(logits.argmax(dim=1) == tokens)
    solve: dict[str, Any] = {}
    if (solution := getattr(output, "solution", None)) is not None:
        residual, tolerance = solution.residual[:, :-1], effective_budget(model, budget).get("tolerance")
        solve = {
            "evaluations": solution.evaluations[:, :-1],
            "residual": residual,
            "is_converged": None if tolerance is None else residual < tolerance,
        }
    return TokenScores(log_probs=torch.stack(log_probs), is_greedy=torch.stack(greedy), **solve)


def score_continuations(
    model: Any,
    sequences: Sequence[tuple[Tensor, int]],
    *,
    batch_size: int = 8,
    advance: Callable[[int, int], None] = lambda done, total: None,
    **budget: float | None,
) -> list[ContinuationScore]:
    """Score each sequence (T,) from its index ``start ≥ 1`` to its end; settings as in :func:`score_text`."""
    device = input_device(model)
    # Sorted by length: little padding, and the largest batch comes first.
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i][0]))
    scores: dict[int, ContinuationScore] = {}
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        input_ids = pad_sequence([sequences[i][0] for i in batch], batch_first=True)
        mask = pad_sequence([torch.ones_like(sequences[i][0]) for i in batch], batch_first=True)
        padding = None if bool(mask.all()) else mask.to(device)
        tokens = score_tokens(model, input_ids.to(device), padding, **budget)
        for row, i in enumerate(batch):
            ids, start = sequences[i]
            scores[i] = _sum_scores(tokens, row, slice(start - 1, len(ids) - 1))
        advance(len(scores), len(order))
    return [scores[i] for i in range(len(sequences))]


def _sum_scores(scores: TokenScores, row: int, part: slice) -> ContinuationScore:
    def total(values: Tensor | None) -> Any:
        return None if values is None else values[row, part].double().sum().item()

    return ContinuationScore(
        num_tokens=part.stop - part.start,
        log_likelihood=total(scores.log_probs),
        is_greedy=bool(scores.is_greedy[row, part].all()),
        evaluations=total(scores.evaluations),
        residual=total(scores.residual),
        num_converged=total(scores.is_converged),
    )
