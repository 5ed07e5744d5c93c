"""From a file of conversations to a tuned model that answers in the terminal."""

import io
import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.chat import chat_checkpoint, conversations, write_conversations
from tests.small_models import SIZES
from transformers import LlamaConfig, LlamaForCausalLM

import attractor
from attractor.cli import main
from attractor.errors import printable
from attractor.experiment.generation import answer
from attractor.models.language import AttractorConfig, AttractorForCausalLM

STEPS = ["train.num_steps=4", "train.log_every=1", "train.checkpoint_every=2", "text.length=64", "text.batch_size=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model with a chat template, one without, one whose template ends no answer, and conversations."""
    place = tmp_path_factory.mktemp("chat")
    chat_checkpoint(place / "model")
    chat_checkpoint(place / "mute", None)
    chat_checkpoint(place / "endless", "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}")
    write_conversations(place / "conversations.jsonl", conversations())
    return place


def tune(place, out, *more: str, init: str = "model", settings=STEPS) -> int:
    command = ["train", "language/chat", "--init", str(place / init), "--data", str(place / "conversations.jsonl")]
    return main([*command, "--out", str(out), "--logger", "none", *more, "--set", *settings])


def losses(out) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def talk(monkeypatch, text: str, *command: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    return main(["chat", *command])


def test_one_command_tunes_a_model_and_resumes_bitwise(place, tmp_path, capsys) -> None:
    """The first loss is that of the answers alone, and the tuned model stops where the template ends an answer."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tune(place, whole) == 0
    assert "12 conversations with" in capsys.readouterr().out
    loaded = attractor.load(place / "model")
    rows = attractor.data.text.ConversationRows(place / "conversations.jsonl", loaded.tokenizer, 64)
    tokens, positions, labels = rows.batch(0, 2)
    with torch.no_grad():
        first = loaded.model.train()(tokens, position_ids=positions, labels=labels).loss
    assert losses(whole)[0] - float(first) == pytest.approx(0.3 * penalty(whole), rel=0.05)
    assert tune(place, parts) == 0
    shutil.rmtree(parts / "step-00000004")
    assert tune(place, parts, "--resume") == 0
    assert losses(parts) == losses(whole)
    a, b = (load_file(out / "step-00000004" / "model.safetensors") for out in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
    tuned = attractor.load(whole)
    assert "<|im_end|>" in tuned.tokenizer.convert_ids_to_tokens(tuned.model.generation_config.eos_token_id)
    assert tuned.tokenizer.chat_template == loaded.tokenizer.chat_template


def penalty(out) -> float:
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["growth"] ** 2


def test_the_recipe_ends_after_two_passes_over_the_conversations(place, tmp_path) -> None:
    """Unless train.num_steps is reached before."""
    assert tune(place, tmp_path, settings=[*STEPS[1:], "epochs=1.5"]) == 0
    loaded = attractor.load(place / "model")
    num_rows = attractor.data.text.ConversationRows(place / "conversations.jsonl", loaded.tokenizer, 64).num_rows
    assert len(losses(tmp_path)) == -(-3 * num_rows // 4)


def test_mistakes_are_one_sentence_and_leave_nothing(place, tmp_path, capsys, monkeypatch) -> None:
    """Conversations without a model, a model without a chat template, text without --data."""
    out = tmp_path / "out"
    data = ["--data", str(place / "conversations.jsonl"), "--out", str(out)]
    mistakes = {
        "no chat template": lambda: tune(place, out, init="mute"),
        "would not learn to stop": lambda: tune(place, out, init="endless"),
        "mute: the model's tokenizer has no chat template": lambda: talk(monkeypatch, "hello\n", str(place / "mute")),
        "give --init": lambda: main(["train", "language/chat", *data]),
        "conversations tune a model": lambda: main(["train", "language/tiny", *data]),
        "give --data FILE, of conversations": lambda: main(
            ["train", "language/chat", "--init", str(place / "model"), "--out", str(out)]
        ),
    }
    for says, command in mistakes.items():
        assert command() == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1, err
    assert not out.exists() or not any(out.iterdir())


def test_a_piped_conversation_is_answered_with_the_evaluations_of_each_reply(place, capsys, monkeypatch) -> None:
    """Each answer is what generation gives after the messages before it; /clear forgets them, /exit ends."""
    model = str(place / "model")
    greedy = ("--temperature", "0", "--max-new-tokens", "5")
    assert talk(monkeypatch, "the cat\n\nten hens\n/clear\nthe cat\n/exit\nnothing\n", model, *greedy) == 0
    printed = capsys.readouterr()
    loaded = attractor.load(model)
    settings = {"temperature": 0, "max_new_tokens": 5}
    messages = [{"role": "user", "content": "the cat"}]
    first = loaded.chat(messages, **settings)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "ten hens"}]
    second = loaded.chat(messages, **settings)
    assert printed.out == printable(f"{first}\n{second}\n{first}\n", keep="\n\t")
    reports = [line for line in printed.err.splitlines() if line.startswith("(")]
    assert len(reports) == 3
    assert all("evaluations per token" in report for report in reports)
    assert talk(monkeypatch, "the cat", model, *greedy, "--depth", "2", "--system", "the old den") == 0
    printed = capsys.readouterr()
    assert "2.0 evaluations per token" in printed.err
    system = [{"role": "system", "content": "the old den"}, messages[0]]
    assert printed.out == printable(loaded.chat(system, **settings, depth=2) + "\n", keep="\n\t")


def test_a_coarser_tolerance_takes_fewer_evaluations_per_token(place) -> None:
    """The number is None where nothing is solved."""
    loaded = attractor.load(place / "model")
    messages = [{"role": "user", "content": "the cat sat"}]

    def evaluations(**budget) -> float | None:
        return answer(loaded.model, loaded.tokenizer, messages, temperature=0, max_new_tokens=6, **budget).evaluations

    assert 1 <= evaluations(tolerance=0.3) < evaluations(tolerance=1e-4, max_evaluations=30) <= 30
    assert evaluations(depth=3) == 3
    plain = AttractorForCausalLM(AttractorConfig(**SIZES, num_attractor_layers=0)).eval()
    loaded = replace(loaded, model=plain)
    assert evaluations() is None


def test_adapters_and_unfitting_tokenizers_are_named(place, tmp_path, capsys) -> None:
    """An adapter alone or beside a model, for every command; a tokenizer with more entries than the embedding."""
    peft = pytest.importorskip("peft")
    adapter, mixed, larger = (tmp_path / name for name in ("adapter", "mixed", "larger"))
    loaded = attractor.load(place / "model")
    shutil.copytree(place / "model", mixed)
    for folder in (adapter, mixed):
        peft.get_peft_model(loaded.model, peft.LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 279})).save_pretrained(larger)
    loaded.tokenizer.save_pretrained(larger)
    out = str(tmp_path / "out")
    mistakes = [
        *(("holds an adapter of PEFT", command) for folder in (adapter, mixed) for command in (
            ["generate", str(folder), "--prompt", "a"],
            ["retrofit", str(folder), out],
            ["train", "language/chat", "--init", str(folder), "--data", "none.jsonl", "--out", out],
        )),
        (f"has {len(loaded.tokenizer)} entries and its model only 279", ["retrofit", str(larger), out]),
        (f"has {len(loaded.tokenizer)} entries and its model only 279", ["chat", str(larger)]),
    ]  # fmt: skip
    capsys.readouterr()
    for says, command in mistakes:
        assert main(command) == 2
        err = capsys.readouterr().err
        assert says in err, err
        assert err.count("\n") == 1, err
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "mixed", "larger"}


def test_quantised_weights_are_not_trained(place, tmp_path, capsys, monkeypatch) -> None:
    """They are refused before anything is written."""
    monkeypatch.setattr(AttractorForCausalLM, "hf_quantizer", object(), raising=False)
    assert tune(place, tmp_path / "out") == 2
    assert "quantised weights, which cannot be trained" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
