"""CORE tasks and LAMBADA: prompts equal hand-written ones, and models with known answers get known scores."""

import gzip
import json
import lzma
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attractor.data.text import train_tokenizer
from attractor.errors import ConfigError, DataError
from attractor.evaluation.bundle import Task, find_task, read_items, read_tasks
from attractor.evaluation.core import CoreScore, continuations, core, draw_examples, evaluate_task, lambada, prompts
from attractor.evaluation.text import encode
from attractor.models.language import AttractorConfig, AttractorForCausalLM

BUNDLE = Path(__file__).parents[3] / "shared" / "data" / "eval"
YAML = """
icl_tasks:
- {label: choose, dataset_uri: some/choose.jsonl, num_fewshot: [0], icl_task_type: multiple_choice}
- {label: refer, dataset_uri: some/refer.jsonl, num_fewshot: [0], icl_task_type: schema}
- {label: lambada_openai, dataset_uri: some/lambada.jsonl, num_fewshot: [0], icl_task_type: language_modeling}
- {label: absent, dataset_uri: some/absent.jsonl, num_fewshot: [2], icl_task_type: language_modeling}
"""
BASELINES = "Eval Task,Random baseline\nchoose,50\nrefer,20\nlambada_openai,0\nabsent,0\n"
CHOOSE = [{"query": f"pick {i}", "choices": ["no no no", "zyx"], "gold": 1} for i in range(6)]
REFER = [{"context_options": ["the zyx", "the ten"], "continuation": f"sat {i}", "gold": 0} for i in range(5)]
WORDS = [{"context": "the zyx sat on the ", "continuation": "mat"}, {"context": "the hen in", "continuation": "den"}]


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(0)
    words = ["the", "cat", "sat", "mat", "dog", "den", "hen", "ten", "down", "pick", "yes", "not", "on", "in", "a"]
    return train_tokenizer([" ".join(rng.choices(words, k=400)) for _ in range(4)], 290)


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "core.yaml").write_text(YAML)
    (tmp_path / "eval_meta_data.csv").write_text(BASELINES)
    folder = tmp_path / "eval_data" / "some"
    folder.mkdir(parents=True)
    (folder / "choose.jsonl").write_text(lines(CHOOSE))
    with gzip.open(folder / "refer.jsonl.gz", "wt") as file:
        file.write(lines(REFER))
    with lzma.open(folder / "lambada.jsonl.xz", "wt") as file:
        file.write(lines(WORDS))
    return tmp_path


def lines(items) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def test_compressed_files_are_read(bundle) -> None:
    """Plain, gzip, xz and zstandard."""
    zstandard = pytest.importorskip("zstandard")
    file = bundle / "eval_data" / "some" / "choose.jsonl"
    file.with_name("choose.jsonl.zst").write_bytes(zstandard.compress(file.read_bytes()))
    file.unlink()
    assert read_items(find_task(bundle, "choose")) == CHOOSE
    assert read_items(find_task(bundle, "refer")) == REFER
    assert read_items(find_task(bundle, "lambada_openai")) == WORDS


class Oracle(nn.Module):
    """Predicts the next token in rows that hold the letter z, and is uniform in all others.

    With ``logit`` > 0 it gives the correct token the highest probability, with ``logit`` < 0 the lowest.
    """

    def __init__(self, tokenizer, logit: float = 20.0, **config) -> None:
        super().__init__()
        self.marker = tokenizer("z")["input_ids"][0]
        self.logit = logit
        self.config = SimpleNamespace(**config)
        self.lengths: list[int] = []

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        self.lengths.append(input_ids.shape[1])
        has_marker = (input_ids == self.marker).any(dim=1)
        logits = self.logit * nn.functional.one_hot(input_ids.roll(-1, dims=1), 290).float()
        return SimpleNamespace(logits=logits * has_marker[:, None, None])


def task(kind="multiple_choice", **settings) -> Task:
    defaults = {"label": "t", "file": None, "rebuilt": False, "num_fewshot": 0, "delimiter": " ", "baseline": 0.25}
    return Task(kind=kind, **defaults | settings)


def test_a_perfect_model_has_accuracy_one(bundle, tokenizer) -> None:
    """Accuracy and centred accuracy are 1, and the loss of the last word follows from its probability."""
    found = core(Oracle(tokenizer), tokenizer, bundle)
    by_label = {score.label: score for score in found.tasks}
    assert by_label["choose"].accuracy == by_label["choose"].centred == 1
    assert by_label["refer"].accuracy == by_label["refer"].centred == 1
    assert by_label["lambada_openai"].accuracy == 0.5  # only one of its contexts holds the marker
    assert found.value == pytest.approx((1 + 1 + 0.5) / 3)
    words = lambada(Oracle(tokenizer), tokenizer, bundle)
    assert (words.num_items, words.accuracy) == (2, 0.5)
    num_tokens = len(tokenizer(" den")["input_ids"])  # ln 290 nats each, and 0 for the predicted word
    assert words.log_likelihood == pytest.approx(-num_tokens * math.log(290) / 2, rel=1e-3)
    assert words.perplexity == pytest.approx(math.exp(-words.log_likelihood))


def test_a_model_worse_than_guessing_has_negative_centred_accuracy(bundle, tokenizer) -> None:
    """Accuracy 0 gives −b/(1 − b) for a baseline b."""
    found = core(Oracle(tokenizer, logit=-20.0), tokenizer, bundle)
    assert [score.accuracy for score in found.tasks] == [0, 0, 0]
    assert [score.centred for score in found.tasks] == pytest.approx([-1, -0.25, 0])


def test_missing_tasks_are_named_and_change_the_name_of_the_score(bundle, tokenizer) -> None:
    """CORE-3 without the fourth file; CORE with all original files; never CORE with a rebuilt one."""
    found = core(Oracle(tokenizer), tokenizer, bundle)
    assert (found.name, found.missing) == ("CORE-3", ("absent",))
    with pytest.raises(DataError, match="absent: the bundle has no file"):
        read_items(find_task(bundle, "absent"))
    (bundle / "some").mkdir()
    (bundle / "some" / "absent_rebuilt.jsonl").write_text(lines([*WORDS, WORDS[0]]))
    found = core(Oracle(tokenizer), tokenizer, bundle)
    assert (found.name, found.missing, found.tasks[-1].rebuilt) == ("CORE-4", (), True)
    assert CoreScore(tasks=found.tasks[:3], missing=()).name == "CORE"


def test_core_extended_adds_the_tasks_that_are_in_the_bundle(bundle, tokenizer) -> None:
    """Each once, with its own examples, delimiter and baseline, 25 % without one; the score is the mean over all found."""
    kinds = {"multiple_choice": CHOOSE, "language_modeling": WORDS * 6}
    with (bundle / "eval_meta_data.csv").open("a") as file:
        file.write("mmlu_zeroshot,20\n")
    for name, kind in (("world_knowledge/mmlu", "multiple_choice"), ("safety/bbq", "multiple_choice")):
        (bundle / "eval_data" / name).parent.mkdir(exist_ok=True)
        (bundle / "eval_data" / f"{name}.jsonl").write_text(lines(kinds[kind]))
    found = core(Oracle(tokenizer, logit=-20.0), tokenizer, bundle, extended=True)
    scores = {task.label: task.centred for task in found.tasks}
    expected = {"choose": -1, "refer": -0.25, "lambada_openai": 0, "mmlu_zeroshot": -0.25, "mmlu_fewshot": -1 / 3}
    assert scores == pytest.approx(expected | {"bbq": -1 / 3})
    assert found.value == pytest.approx(sum(scores.values()) / 6)
    assert (found.name, len(found.missing)) == ("CORE-Extended-6", 1 + 21)
    assert core(Oracle(tokenizer), tokenizer, bundle).name == "CORE-3"
    tasks = {t.label: (t.kind, t.num_fewshot, t.delimiter) for t in read_tasks(bundle, extended=True)}
    assert len(tasks) == len(read_tasks(bundle, extended=True)) == 4 + 24
    assert tasks["mmlu_zeroshot"] == ("multiple_choice", 0, "Answer: ")
    assert tasks["logi_qa"] == ("multiple_choice", 10, "\nAnswer: ")
    assert tasks["pubmed_qa_labeled"] == ("language_modeling", 10, " ")
    listed = "- {label: bbq, dataset_uri: safety/bbq.jsonl, num_fewshot: [3], icl_task_type: multiple_choice}\n"
    (bundle / "core.yaml").write_text(YAML + listed)
    (bundle / "eval_meta_data.csv").write_text(BASELINES + "bbq,50\n")
    assert [t.label for t in read_tasks(bundle, extended=True)].count("bbq") == 1


def test_accuracy_is_the_mean_over_the_seeds_of_the_examples(bundle, tokenizer) -> None:
    """An example with the marker spoils the answer, so that seeds differ; without examples, one run is enough."""
    items = [{"query": f"pick {i}", "choices": ["zyx", "yes"], "gold": 1} for i in range(8)]
    items[2]["choices"] = ["no", "zyx"]
    (bundle / "eval_data" / "some" / "choose.jsonl").write_text(lines(items))
    few, model = replace(find_task(bundle, "choose"), num_fewshot=2), Oracle(tokenizer, logit=-20.0)
    alone = [evaluate_task(model, tokenizer, few, fewshot_seeds=(seed,)).accuracy for seed in (1, 2, 3)]
    assert len(set(alone)) > 1
    mean = evaluate_task(model, tokenizer, few, fewshot_seeds=(1, 2, 3))
    assert mean.accuracy == pytest.approx(sum(alone) / 3)
    assert (mean.num_items, mean.num_all) == (8, 8)
    model.lengths.clear()
    evaluate_task(model, tokenizer, find_task(bundle, "choose"), fewshot_seeds=(1, 2, 3))
    once = len(model.lengths)
    evaluate_task(model, tokenizer, find_task(bundle, "choose"))
    assert len(model.lengths) == 2 * once
    with pytest.raises(ConfigError, match="at least one seed"):
        evaluate_task(model, tokenizer, few, fewshot_seeds=())


def test_few_shot_examples_are_reproducible_and_never_include_the_item() -> None:
    """For every item, and no example appears twice."""
    items = [{"n": n} for n in range(12)]
    for index in range(12):
        drawn = draw_examples(items, index, 11)
        assert sorted(e["n"] for e in drawn) == [n for n in range(12) if n != index]
        assert draw_examples(items, index, 4) == draw_examples(items, index, 4)
    assert draw_examples(items, 0, 4) != draw_examples(items, 1, 4)


def test_prompts_equal_hand_written_ones() -> None:
    """Examples in sequence, separated by a blank line, with the delimiter before each answer."""
    choice = {"query": "Q2", "choices": ["a", "b"], "gold": 0}
    solved = [{"query": "Q1", "choices": ["c", "d"], "gold": 1}]
    assert prompts(task(delimiter="\nAnswer: "), choice, solved) == [
        "Q1\nAnswer: d\n\nQ2\nAnswer: a",
        "Q1\nAnswer: d\n\nQ2\nAnswer: b",
    ]
    schema = {"context_options": ["he", "she"], "continuation": "ran.", "gold": 1}
    assert prompts(task("schema"), schema, [schema]) == ["she ran.\n\nhe ran.", "she ran.\n\nshe ran."]
    text = {"context": " one two \n", "continuation": "three"}
    assert prompts(task("language_modeling"), text, [text]) == [
        "one two three\n\none two",
        "one two three\n\none two three",
    ]


def test_only_the_part_that_differs_is_scored(tokenizer) -> None:
    """The tokens after a common beginning, the common ending, or the continuation; always at least one token."""

    def scored(kind, texts):
        return [tokenizer.decode(t[start:]) for t, start in continuations(tokenizer, task(kind), texts)]

    assert scored("multiple_choice", ["the cat", "the dog down"]) == [" cat", " dog down"]
    assert scored("schema", ["the cat sat on", "the dog sat on"]) == [" sat on", " sat on"]
    assert scored("language_modeling", ["the cat", "the cat sat on"]) == [" sat on"]
    assert [len(t) - s for t, s in continuations(tokenizer, task(), ["the cat", "the cat sat"])] == [1, 2]
    assert torch.equal(continuations(tokenizer, task(), ["the", "a"])[0][0], encode(tokenizer, "the"))


def test_a_limit_takes_the_same_random_items_every_time(bundle, tokenizer) -> None:
    """The result reports both counts, and a second run gives the same result."""
    choose = find_task(bundle, "choose")
    found = evaluate_task(Oracle(tokenizer), tokenizer, choose, limit=2)
    assert (found.num_items, found.num_all) == (2, 6)
    assert found == evaluate_task(Oracle(tokenizer), tokenizer, choose, limit=2)
    with pytest.raises(ConfigError, match="limit=0"):
        evaluate_task(Oracle(tokenizer), tokenizer, choose, limit=0)


def test_long_prompts_are_cut_at_the_beginning(bundle, tokenizer) -> None:
    """They fit the model's positions, keep their ends, and are counted."""
    long = [{"query": "the cat sat on the mat " * 9 + "z", "choices": ["yes", "no"], "gold": 0}] * 3
    (bundle / "eval_data" / "some" / "choose.jsonl").write_text(lines(long))
    model = Oracle(tokenizer, max_position_embeddings=12)
    found = evaluate_task(model, tokenizer, find_task(bundle, "choose"))
    assert max(model.lengths) == 12
    assert found.num_cut == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "line 1 is not JSON"),
        ('{"query": "q", "choices": ["a"]}\n', "needs 'gold'"),
        ('{"query": "q", "choices": ["a"], "gold": 1}\n', "gold=1 must be one of its 1"),
        ('{"query": "q", "choices": [1], "gold": 0}\n', "each a text"),
        ("[]\n", "needs 'query'"),
        ("", "too few"),
    ],
)
def test_damaged_items_are_refused(content, says, bundle) -> None:
    """The error names the file, the line and the problem."""
    (bundle / "eval_data" / "some" / "choose.jsonl").write_text(content)
    with pytest.raises(DataError, match=f"choose.jsonl.*{says}"):
        read_items(find_task(bundle, "choose"))


def test_an_invalid_bundle_is_refused(bundle, tmp_path) -> None:
    """A missing folder, a broken list, an unknown type, an unknown task."""
    with pytest.raises(DataError, match="no evaluation bundle"):
        read_tasks(tmp_path / "nowhere")
    with pytest.raises(DataError, match="did you mean 'choose'"):
        find_task(bundle, "chose")
    (bundle / "core.yaml").write_text(YAML.replace("schema", "scheme"))
    with pytest.raises(DataError, match="did you mean 'schema'"):
        read_tasks(bundle)
    (bundle / "core.yaml").write_text("icl_tasks: [")
    with pytest.raises(DataError, match="cannot be parsed"):
        read_tasks(bundle)


@pytest.mark.skipif(not BUNDLE.is_dir(), reason="the shared evaluation bundle is not available")
def test_every_task_of_the_real_bundle_runs(tokenizer) -> None:
    """With a small random model; missing tasks are named, and so is the score."""
    config = AttractorConfig(
        vocab_size=290,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    found = core(AttractorForCausalLM(config).eval(), tokenizer, BUNDLE, limit=1, depth=1)
    present = [t for t in read_tasks(BUNDLE) if t.file is not None]
    assert [score.label for score in found.tasks] == [t.label for t in present]
    assert all(score.num_items == 1 for score in found.tasks)
    assert (found.name, found.missing) == ("CORE-19", ("jeopardy", "squad", "coqa"))
