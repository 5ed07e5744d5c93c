"""Pipelines, lm-evaluation-harness and PEFT load our checkpoints, once ``attractor.models.language`` is imported."""

import json
import random
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from attractor.data.text import train_tokenizer
from attractor.errors import ConfigError
from attractor.models.language import AttractorConfig, AttractorForCausalLM

DOCUMENTS = ["the cat sat on the mat", "a dog in a den", "ten hens sat down"]
TASK = """
task: tiny_choose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
output_type: multiple_choice
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
IS_KNOWN = "\nfrom transformers import AutoConfig; assert AutoConfig.for_model('attractor').injection == 'mean'"
ORDERS = [
    "import sys, attractor; assert 'transformers' not in sys.modules; import attractor.models.language" + IS_KNOWN,
    "import transformers, attractor.models.language" + IS_KNOWN,
]


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(0)
    words = ["the", "cat", "sat", "mat", "dog", "den", "hen", "ten", "down", "ever", "yes", "not", "on", "in", "a"]
    return train_tokenizer([" ".join(rng.choices(words, k=400)) for _ in range(4)], 290)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    """A folder with a small model, whose every matrix changes the output, and its tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = AttractorForCausalLM(
        AttractorConfig(
            vocab_size=290,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=128,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_importing_the_models_registers_them_with_the_auto_classes() -> None:
    """Before ``transformers`` or after it. Importing ``attractor`` alone does not load ``transformers``."""
    runs = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for code in ORDERS]
    for run in runs:
        _, error = run.communicate(timeout=180)
        assert run.returncode == 0, error


@pytest.mark.parametrize("budget", [{}, {"depth": 0}, {"tolerance": 1e-2, "max_evaluations": 5}], ids=str)
def test_a_pipeline_writes_what_generate_writes(budget: dict, checkpoint, tokenizer) -> None:
    """From the folder, in a padded batch too; a budget reaches the model."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    write = pipeline("text-generation", str(checkpoint), device="cpu")
    settings = {"max_new_tokens": 6, "do_sample": False, **budget}
    for text, (found,) in zip(DOCUMENTS, write(DOCUMENTS, batch_size=3, **settings), strict=True):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0]
        assert found["generated_text"] == tokenizer.decode(wanted, skip_special_tokens=True)


def test_the_harness_loads_a_folder_with_its_own_adapter(checkpoint, tmp_path, monkeypatch) -> None:
    """``--model hf`` on a custom task, without remote code."""
    tasks = pytest.importorskip("lm_eval.tasks", reason="lm-evaluation-harness is not installed")
    pytest.importorskip("lm_eval.models.huggingface", reason="lm-evaluation-harness is not installed with [hf]")
    from lm_eval import simple_evaluate

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = tmp_path / "items.jsonl"
    items = [{"question": "the cat " * n, "options": ["sat", "down"], "answer": n % 2} for n in range(1, 6)]
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "choose.yaml").write_text(TASK.format(file=file))
    found = simple_evaluate(
        model="hf",
        model_args=f"pretrained={checkpoint},trust_remote_code=False,device=cpu",
        tasks=["tiny_choose"],
        task_manager=tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        batch_size=2,
        bootstrap_iters=0,
    )
    assert found["results"]["tiny_choose"]["acc,none"] in (0, 0.2, 0.4, 0.6, 0.8, 1)
    assert found["config"]["model_num_parameters"] > 10_000


def test_lora_trains_only_adapters_also_in_the_attractor(checkpoint, tmp_path) -> None:
    """Steps lower the loss; adapters that are saved, loaded and merged give the same logits."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    torch.manual_seed(0)
    settings = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), settings).train()
    ids = torch.randint(0, 290, (4, 24))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):  # one matrix of an adapter starts at zero, so the other gets a gradient from the second step on
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(float(loss.detach()))
        learning = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    assert all("lora_" in name for name in learning)
    places = {name.split(".lora_")[0] for name in learning}
    wanted = {f"layers.{i}.self_attn.{name}" for i in range(3) for name in ("q_proj", "v_proj")}
    assert {place.removeprefix("base_model.model.model.") for place in places} == wanted
    assert len(learning) == 2 * len(wanted)

    model.eval().save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        before, tuned = plain(ids).logits, model(input_ids=ids).logits
        again = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
        assert torch.equal(again(input_ids=ids).logits, tuned)
        assert (tuned - before).abs().max() > 1e-3
        merged = again.merge_and_unload()
        assert type(merged) is AttractorForCausalLM
        for depth in (0, 1):
            assert (merged(ids, depth=depth).logits - model(input_ids=ids, depth=depth).logits).abs().max() < 1e-5


def test_attentions_are_refused(checkpoint) -> None:
    """Passing them as None or False is allowed, as libraries do."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    ids = torch.zeros(1, 3, dtype=torch.long)
    model(ids, output_attentions=None, output_hidden_states=False)
    with pytest.raises(ConfigError, match="not returned"):
        model(ids, output_attentions=True)
