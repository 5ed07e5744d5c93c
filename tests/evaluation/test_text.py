"""Scoring text: every token once, every byte counted, and no result depends on windows or batches."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.small_models import SIZES, randomised
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from attractor.errors import ConfigError, DataError
from attractor.evaluation.text import encode, score_continuations, score_text, score_tokens, sliding_windows
from attractor.models.language import AttractorConfig, AttractorForCausalLM

DOCUMENTS = ["the cat sat on the mat, naïve as ever 🙂 " * 3, "a", "the dog 犬 sat down " * 2, "ten hens in the den"]


@pytest.fixture(scope="module")
def attractor():
    return randomised(AttractorForCausalLM(AttractorConfig(**SIZES, gate_start=0.3)))


@pytest.fixture(scope="module")
def stock():
    return randomised(Qwen3ForCausalLM(Qwen3Config(**SIZES)))


class Uniform(nn.Module):
    """Gives each of ``size`` tokens the same probability."""

    def __init__(self, size: int = 300) -> None:
        super().__init__()
        self.size = size

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, self.size))


@pytest.mark.parametrize("which", ["attractor", "stock"])
def test_one_window_per_document_gives_the_cross_entropy(which, request, tokenizer) -> None:
    """The nats equal the cross-entropy over each complete document, for our models and stock ones."""
    model = request.getfixturevalue(which)
    expected = 0.0
    for text in DOCUMENTS:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        expected += float(nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
    found = score_text(model, tokenizer, DOCUMENTS, length=128, batch_size=3)
    assert found.nats == pytest.approx(expected, abs=1e-2)
    assert found.perplexity == pytest.approx(math.exp(found.nats / found.num_tokens))
    assert (found.evaluations is None) == (which == "stock")


@pytest.mark.parametrize("stride", [1, 5, 8, 15])
def test_counts_do_not_depend_on_the_window(stride, tokenizer) -> None:
    """Bytes, tokens and a uniform model's bits per byte are the same for every stride."""
    found = score_text(Uniform(), tokenizer, DOCUMENTS, length=16, stride=stride, batch_size=2)
    num_tokens = sum(len(tokenizer(text)["input_ids"]) for text in DOCUMENTS)
    num_bytes = sum(len(text.encode()) for text in DOCUMENTS)
    assert (found.num_documents, found.num_tokens, found.num_bytes) == (4, num_tokens, num_bytes)
    assert found.bits_per_byte == pytest.approx(math.log2(300) * num_tokens / num_bytes)
    assert found.perplexity == pytest.approx(300)


@pytest.mark.parametrize("num", [1, 2, 7, 8, 9, 31, 40])
@pytest.mark.parametrize(("length", "stride"), [(8, 4), (8, 1), (8, 7), (2, 1), (64, 32)])
def test_windows_predict_every_token_once_with_enough_context(num, length, stride) -> None:
    """In order, none twice, with at least ``length − stride`` tokens of context or all preceding tokens."""
    scored = []
    for window, start in sliding_windows(torch.arange(num), length, stride):
        assert 1 <= start < len(window) <= length
        for index in range(start, len(window)):
            assert index >= min(length - stride, int(window[index]))
            scored.append(int(window[index]))
    assert scored == list(range(1, num))


def test_batches_do_not_change_scores(attractor, tokenizer) -> None:
    """A sequence alone and in a batch with other lengths: equal to 1e-4 nats."""
    sequences = [(encode(tokenizer, text), 1) for text in DOCUMENTS]
    alone = score_continuations(attractor, sequences, batch_size=1, depth=3)
    batched = score_continuations(attractor, sequences, batch_size=4, depth=3)
    for a, b in zip(alone, batched, strict=True):
        assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=1e-4)
        assert (a.num_tokens, a.evaluations) == (b.num_tokens, b.evaluations)


def test_the_budget_reaches_the_model(attractor, tokenizer) -> None:
    """Depth is the number of evaluations and changes the score; a tolerance is reached and reported."""
    scores = [score_text(attractor, tokenizer, DOCUMENTS, length=32, depth=depth) for depth in (0, 1, 4)]
    assert [s.evaluations for s in scores] == [0, 1, 4]
    assert len({round(s.nats, 4) for s in scores}) == 3
    assert scores[1].converged_fraction is None
    solved = score_text(attractor, tokenizer, DOCUMENTS, length=32, tolerance=1e-2, max_evaluations=50)
    assert solved.converged_fraction == 1
    assert 0 < solved.residual < 1e-2
    assert solved.evaluations > 1


def test_a_budget_is_refused_for_a_model_without_a_solve(stock, tokenizer) -> None:
    """A stock model would silently accept any keyword."""
    with pytest.raises(ConfigError, match="Qwen3ForCausalLM has no depth"):
        score_text(stock, tokenizer, DOCUMENTS, length=32, depth=2)


def test_greedy_tokens_are_the_most_likely_ones(attractor, tokenizer) -> None:
    """``is_greedy`` holds exactly where the arg max is the next token; log-probabilities are those of the softmax."""
    ids = encode(tokenizer, DOCUMENTS[0])[None]
    with torch.no_grad():
        logits = attractor(input_ids=ids, depth=1).logits
    ids[0, 5] = logits[0, 4].argmax()  # only later tokens see it
    found = score_tokens(attractor, ids, depth=1)
    assert found.is_greedy[0, 4]
    with torch.no_grad():
        logits = attractor(input_ids=ids, depth=1).logits[:, :-1]
    assert torch.equal(found.is_greedy, logits.argmax(-1) == ids[:, 1:])
    expected = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(found.log_probs, expected)


def test_progress_ends_at_all_windows(tokenizer) -> None:
    """The number of finished windows grows to the total."""
    seen = []
    score_text(Uniform(), tokenizer, DOCUMENTS, length=16, batch_size=3, advance=lambda *n: seen.append(n))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("settings", "documents", "error", "says"),
    [
        ({"length": 8, "stride": 8}, DOCUMENTS, ConfigError, "stride < length"),
        ({"length": 1}, DOCUMENTS, ConfigError, "stride < length"),
        ({"length": 129}, DOCUMENTS, ConfigError, "128 positions"),
        ({"length": 8}, [], DataError, "no text to score"),
        ({"length": 8}, [""], DataError, "no text to score"),
    ],
)
def test_invalid_arguments_are_refused(settings, documents, error, says, attractor, tokenizer) -> None:
    """With an error of the right type that names the problem."""
    with pytest.raises(error, match=says):
        score_text(attractor, tokenizer, documents, **settings)
