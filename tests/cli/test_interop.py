"""``attractor export`` and ``attractor import``: folders written whole, and mistakes in one sentence."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from attractor.cli import main
from attractor.data.text import prepare, train_tokenizer
from attractor.models.language import AttractorConfig, AttractorForCausalLM

FIXTURE = Path(__file__).parents[1] / "interop" / "official_tiny"
DOCUMENTS = ["the cat sat on the mat " * 9, "a dog in a den", "ten hens sat down"]


@pytest.fixture(scope="module")
def tokenizer():
    rng = random.Random(0)
    words = ["the", "cat", "sat", "mat", "dog", "den", "hen", "ten", "down", "ever", "yes", "not", "on", "in", "a"]
    return train_tokenizer([" ".join(rng.choices(words, k=400)) for _ in range(4)], 290)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = AttractorForCausalLM(
        AttractorConfig(
            vocab_size=290,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_export_writes_network_tokenizer_and_card(checkpoint, tokenizer, tmp_path, capsys) -> None:
    """With the loss of the text given, the same from files and from a prepared folder; at each depth."""
    file = tmp_path / "held-out.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    prepare(tmp_path / "prepared", {"train": ["the cat"], "val": DOCUMENTS}, tokenizer)
    cards = []
    for data in (file, tmp_path / "prepared"):
        out = tmp_path / data.stem / "out"
        assert main(["export", str(checkpoint), str(out), "--depth", "1", "--data", str(data)]) == 0
        cards.append((out / "README.md").read_text())
    assert cards[0] == cards[1]
    assert "the original at its equilibrium" in cards[0]
    assert "bits per byte" in capsys.readouterr().out
    assert AutoTokenizer.from_pretrained(out)("the cat")["input_ids"] == tokenizer("the cat")["input_ids"]
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 3

    assert main(["export", str(checkpoint), str(tmp_path / "plain"), "--depth", "0"]) == 0
    assert "Not measured." in (tmp_path / "plain" / "README.md").read_text()
    assert "not measured" in capsys.readouterr().out


def test_export_writes_a_graph_for_onnxruntime(checkpoint, tokenizer, tmp_path, capsys) -> None:
    """Its logits are those of the depth, and the card has the loss of the text at that depth."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    (tmp_path / "held-out.txt").write_text(DOCUMENTS[0])
    out, data = tmp_path / "out", str(tmp_path / "held-out.txt")
    assert main(["export", str(checkpoint), str(out), "--depth", "2", "--to", "onnx", "--data", data]) == 0
    assert "bits per byte" in capsys.readouterr().out
    assert "this model (depth 2)" in (out / "README.md").read_text()
    ids = AutoTokenizer.from_pretrained(out)("the cat", return_tensors="pt")["input_ids"]
    inputs = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
    (found,) = onnxruntime.InferenceSession(out / "model.onnx").run(None, inputs)
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(checkpoint).eval()(ids, depth=2).logits
    assert (torch.from_numpy(found) - wanted).abs().max() < 1e-4


def test_mistakes_of_export_are_one_sentence(checkpoint, tmp_path, capsys) -> None:
    """Exit code 2, and nothing is written."""
    for arguments, says in [
        ([checkpoint, tmp_path / "out", "--depth", "2"], "give 0"),
        ([checkpoint, tmp_path, "--depth", "1"], "exists already"),
        ([tmp_path / "nowhere", tmp_path / "out", "--depth", "1"], "no checkpoint here"),
        ([checkpoint, tmp_path / "out", "--depth", "1", "--data", "no/such"], "no such file"),
    ]:
        assert main(["export", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_official_checkpoint_becomes_ours(tmp_path, capsys) -> None:
    """Loaded by the Auto class; a damaged one leaves nothing behind."""
    assert main(["import", str(FIXTURE), str(tmp_path / "out")]) == 0
    assert "copy its tokenizer" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert isinstance(model, AttractorForCausalLM)
    assert model.config.injection == "sum"
    assert main(["import", str(tmp_path), str(tmp_path / "other")]) == 2
    assert "config.json" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
