"""Tasks of lm-evaluation-harness run on models in memory."""

import functools
import json
import sys

import pytest
from tests.small_models import SIZES
from transformers import Qwen3Config, Qwen3ForCausalLM

from attractor.cli import main
from attractor.errors import ConfigError
from attractor.evaluation.harness import harness
from attractor.models.language import AttractorConfig, AttractorForCausalLM

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOOSE = """
output_type: multiple_choice
doc_to_choice: "{{options}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
output_type: generate_until
doc_to_target: den
generation_kwargs: {until: ["@"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def test_a_missing_library_is_reported_with_the_command_that_installs_it(monkeypatch) -> None:
    """As a ConfigError, not an ImportError."""
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'attractor-models\[eval\]'"):
        harness(None, None, ["anything"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two tasks of our own. The thousands of built-in tasks are not loaded, for speed."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-evaluation-harness is not installed")
    pytest.importorskip("lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed with [hf]")
    monkeypatch.setattr(tasks, "TaskManager", functools.partial(tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "items.jsonl"
    items = [{"question": "the cat " * n, "options": ["sat", "down"], "answer": n % 2} for n in range(1, 6)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "choose.yaml").write_text(TASK.format(name="tiny_choose", file=file) + CHOOSE)
    (tmp_path / "write.yaml").write_text(TASK.format(name="tiny_write", file=file) + WRITE)
    return tmp_path


def test_attractor_models_run_with_their_budget(folder, tokenizer) -> None:
    """In scoring and generation, every call of the model gets the depth."""
    model = AttractorForCausalLM(AttractorConfig(**SIZES))
    depths = []
    model.register_forward_pre_hook(lambda m, args, kwargs: depths.append(kwargs.get("depth")), with_kwargs=True)
    found = harness(model, tokenizer, ["tiny_choose", "tiny_write"], limit=4, include_path=folder, depth=2)
    assert set(found) == {"tiny_choose", "tiny_write"}
    assert found["tiny_choose"]["acc,none"] in (0, 0.25, 0.5, 0.75, 1)
    assert found["tiny_write"]["exact_match,none"] == 0
    assert depths == [2] * 4  # one batch of options, and three generated tokens


def test_stock_models_run_without_a_budget(folder, tokenizer) -> None:
    """A budget is refused, because they would silently ignore it."""
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    found = harness(model, tokenizer, ["tiny_choose", "tiny_write"], include_path=folder)
    assert 0 <= found["tiny_choose"]["acc,none"] <= 1
    with pytest.raises(ConfigError, match="has no depth"):
        harness(model, tokenizer, ["tiny_choose"], include_path=folder, depth=2)


def test_texts_begin_as_in_training(folder, tokenizer) -> None:
    """In scoring, in generation and in running text, every row of the model begins with the token before a document, once."""
    rolling = (
        "output_type: loglikelihood_rolling\ndoc_to_target: '{{question}}'\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    task = TASK.format(name="tiny_roll", file=folder / "items.jsonl").replace("{{question}}", "")
    (folder / "roll.yaml").write_text(task + rolling)
    model, seen = AttractorForCausalLM(AttractorConfig(**SIZES)), []
    model.register_forward_pre_hook(lambda m, args, kwargs: seen.extend(kwargs["input_ids"]), with_kwargs=True)
    harness(model, tokenizer, ["tiny_choose", "tiny_write", "tiny_roll"], limit=3, include_path=folder, depth=1)
    texts = [tokenizer.decode(row) for row in seen if len(row) > 1]
    assert len(texts) >= 9
    assert all(text.lstrip().startswith(tokenizer.eos_token) for text in texts)
    assert not any(text.startswith(tokenizer.eos_token * 2 + "the") for text in texts)


def test_own_tasks_run_from_the_command_line(folder, tokenizer, tmp_path, capsys) -> None:
    """``--include-path`` names their folder; without it, or without such a task, the mistake is one sentence."""
    AttractorForCausalLM(AttractorConfig(**SIZES)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    command = ["evaluate", str(tmp_path / "model"), "--depth", "1", "--limit", "2", "--tasks", "harness:tiny_choose"]
    assert main([*command, "--include-path", str(folder)]) == 0
    assert "harness:tiny_choose" in capsys.readouterr().out
    for more, says in (
        ([], "no task 'tiny_choose'"),
        (["--include-path", str(tmp_path / "none")], "no such folder"),
        (["--tasks", "text", "--data", str(folder), "--include-path", str(folder)], "include_path is for"),
    ):
        assert main([*command, *more]) == 2
        assert says in capsys.readouterr().err


def test_an_unknown_task_is_refused_with_the_nearest_name(folder, tokenizer) -> None:
    """Without a similar name, the error says how to list all tasks."""
    model = Qwen3ForCausalLM(Qwen3Config(**SIZES))
    with pytest.raises(ConfigError, match="did you mean 'tiny_choose'"):
        harness(model, tokenizer, ["tiny_chose"], include_path=folder)
    with pytest.raises(ConfigError, match="lm-eval ls tasks"):
        harness(model, tokenizer, ["0"], include_path=folder)
