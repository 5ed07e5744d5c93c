"""A byte-level n-gram model with interpolated (Witten–Bell) smoothing: the least that a neural model of text must beat.

``P(c | h) = (count(hc) + kinds(h) · P(c | h without its first byte)) / (count(h) + kinds(h))``, where ``kinds(h)`` is
the number of different bytes seen after ``h``; before everything stands the uniform distribution over 256 bytes (Witten
& Bell 1991).
"""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]  # sorted keys, counts


class ByteNgram:
    """Fitted on bytes, up to ``order`` of them at a time (5: four bytes predict the fifth)."""

    def __init__(self, data: bytes, order: int = 5) -> None:
        self.order = order
        text = np.frombuffer(data, dtype=np.uint8)
        self._grams = [np.unique(_keys(text, n), return_counts=True) for n in range(1, order + 1)]
        # Per context: how often it was followed by something, and by how many different bytes.
        self._contexts = [_contexts(keys, counts) for keys, counts in self._grams]

    def bits_per_byte(self, documents: Iterable[str]) -> float:
        """Return the mean bits over all bytes of the documents, each read from its beginning."""
        bits, total = 0.0, 0
        for document in documents:
            text = np.frombuffer(document.encode(), dtype=np.uint8)
            p = np.full(len(text), 1 / 256)
            for n in range(1, self.order + 1):
                grams = _keys(text, n)  # of bytes n − 1 to the end
                seen = _look_up(self._grams[n - 1], grams)
                keys, times, kinds = self._contexts[n - 1]
                context = grams >> 8
                num, distinct = _look_up((keys, times), context), _look_up((keys, kinds), context)
                known = num > 0
                tail = p[n - 1 :]
                tail[known] = (seen[known] + distinct[known] * tail[known]) / (num[known] + distinct[known])
            bits -= float(np.log2(p).sum())
            total += len(text)
        return bits / total if total else math.nan


def _keys(text: NDArray[np.uint8], n: int) -> NDArray[np.int64]:
    """Return every run of ``n`` bytes as one number."""
    keys = np.zeros(max(len(text) - n + 1, 0), dtype=np.int64)
    for i in range(n):
        keys = (keys << 8) | text[i : i + len(keys)]
    return keys


def _contexts(keys: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    contexts, first = np.unique(keys >> 8, return_index=True)
    kinds = np.diff(np.append(first, len(keys)))
    return contexts, np.add.reduceat(counts, first), kinds


def _look_up(table: Counts, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    keys, values = table
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
