"""The n-gram that language models are compared with is what its formula says."""

import math
from collections import Counter

import pytest
from benchmarks.ngram import ByteNgram

DATA = b"abracadabra, a barbarian abroad"


def brute(context: bytes, byte: int, order: int) -> float:
    """Witten–Bell by counting, one context at a time."""
    p = 1 / 256
    for n in range(order):
        if n > len(context):
            break
        history = context[len(context) - n :]
        after = Counter(DATA[i + n] for i in range(len(DATA) - n) if DATA[i : i + n] == history)
        if after:
            p = (after[byte] + len(after) * p) / (after.total() + len(after))
    return p


@pytest.mark.parametrize("order", [1, 2, 5])
def test_it_agrees_with_counting(order: int) -> None:
    """Byte by byte, with contexts that were seen and not."""
    text = "a bar abrupt"
    bits = -sum(
        math.log2(brute(text[:i].encode()[-order + 1 or len(text) :], ord(c), order)) for i, c in enumerate(text)
    )
    assert ByteNgram(DATA, order).bits_per_byte([text]) == pytest.approx(bits / len(text))


def test_probabilities_sum_to_one() -> None:
    """Over all bytes that may come next."""
    assert sum(brute(b"abra", byte, 5) for byte in range(256)) == pytest.approx(1)
