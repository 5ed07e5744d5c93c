"""Fixtures that tests of several packages share."""

import os
import random

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes of tests, and those that they start, share two cores

LONGEST = (
    "test_distributed",
    "test_processes",
    "test_code_blocks",
    "test_cost",
    "test_notebooks",
    "test_faults",
    "test_cache",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level BPE tokenizer of 290 entries, trained on a few words."""
    from attractor.data.text import train_tokenizer

    rng = random.Random(0)
    words = ["the", "cat", "sat", "mat", "dog", "den", "hen", "ten", "down", "ever", "yes", "not", "on", "in", "a"]
    return train_tokenizer([" ".join(rng.choices(words, k=400)) for _ in range(4)], 290)
