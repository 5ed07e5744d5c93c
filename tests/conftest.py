"""Fixtures that tests of several packages share."""

import json
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


@pytest.fixture
def bundle(tmp_path):
    """An evaluation bundle with a task of CORE, LAMBADA, and a task without a file."""
    folder = tmp_path / "bundle"
    (folder / "some").mkdir(parents=True)
    (folder / "core.yaml").write_text(
        "icl_tasks:\n"
        "- {label: choose, dataset_uri: some/a.jsonl, num_fewshot: [1], icl_task_type: multiple_choice}\n"
        "- {label: lambada_openai, dataset_uri: some/b.jsonl, num_fewshot: [0], icl_task_type: language_modeling}\n"
        "- {label: absent, dataset_uri: some/c.jsonl, num_fewshot: [0], icl_task_type: language_modeling}\n"
    )
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nchoose,50\nlambada_openai,0\nabsent,0\n")
    choose = json.dumps({"query": "the", "choices": ["cat", "dog"], "gold": 1}) + "\n"
    (folder / "some" / "a.jsonl").write_text(choose * 5)
    (folder / "some" / "b.jsonl").write_text(json.dumps({"context": "the", "continuation": "cat"}) + "\n")
    return folder
