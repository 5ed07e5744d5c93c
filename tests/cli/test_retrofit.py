"""A pretrained model from its folder, retrofitted, trained and evaluated, by commands."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import attractor
from attractor.cli import main
from attractor.data.text import train_tokenizer

SMALL = [
    "text.length=32",
    "text.batch_size=2",
    "train.accumulate=1",
    "model.max_evaluations=6",
    "train.log_every=2",
    "train.checkpoint_every=2",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A Llama with its tokenizer, text prepared with it and without, and the retrofitted model."""
    place = tmp_path_factory.mktemp("retrofit")
    (place / "text").mkdir()
    for i in range(8):
        (place / "text" / f"{i}.txt").write_text(" ".join(f"the {i * j % 13} small boats of {j}" for j in range(300)))
    texts = [file.read_text() for file in (place / "text").iterdir()]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": [0, 5], "pad_token_id": 0}
    backbone = LlamaForCausalLM(LlamaConfig(vocab_size=320, max_position_embeddings=64, **sizes, **special))
    backbone.save_pretrained(place / "backbone")
    train_tokenizer(texts, 300).save_pretrained(place / "backbone")
    assert main(["retrofit", str(place / "backbone"), str(place / "model"), "--num-attractor-layers", "2"]) == 0
    for name, vocabulary in (("own", ["--tokenizer", str(place / "model")]), ("other", ["--vocab-size", "290"])):
        command = ["data", "prepare", str(place / "text"), "--out", str(place / name), *vocabulary]
        assert main([*command, "--val-fraction", "0.3"]) == 0
    return place


def train(
    place: Path,
    out: Path,
    *more: str,
    settings: tuple = (),
    data: str = "own",
    steps: int = 4,
    recipe: str = "retrofit",
) -> int:
    command = [
        "train",
        f"language/{recipe}",
        "--init",
        str(place / "model"),
        "--data",
        str(place / data),
        "--out",
        str(out),
    ]
    return main([*command, "--logger", "none", *more, "--set", *SMALL, f"train.num_steps={steps}"])


def test_from_a_backbone_to_an_evaluated_attractor(place, tmp_path) -> None:
    """Training starts from the checkpoint's weights, keeps its special tokens and resumes bitwise."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(place, whole) == 0
    log = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"spectral_radius", "evaluations", "gate"} <= log[-1].keys()
    trained = AutoModelForCausalLM.from_pretrained(whole / "step-00000004")
    start = AutoModelForCausalLM.from_pretrained(place / "model")
    assert trained.generation_config.eos_token_id == [0, 5]
    assert trained.config.vocab_size == 320
    weights = trained.state_dict()
    for name, weight in start.state_dict().items():
        moved = (weights[name] - weight).abs().max()
        assert moved < 1e-3, f"{name} does not start at the checkpoint"
    assert train(place, parts) == 0
    shutil.rmtree(parts / "step-00000004")
    assert train(place, parts, "--resume") == 0
    a, b = (load_file(out / "step-00000004" / "model.safetensors") for out in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert main(["evaluate", str(whole), "--data", str(place / "own"), "--limit", "1"]) == 0


def test_only_the_attractor_is_trained_with_a_frozen_backbone(place, tmp_path, capsys) -> None:
    """Everything outside its two layers stays bitwise, and a resumed run continues so, with its own teacher only."""
    assert train(place, tmp_path / "run", recipe="retrofit-distilled") == 0
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < log[0]["divergence"] < 1
    start, trained = (load_file(f / "model.safetensors") for f in (place / "model", tmp_path / "run" / "step-00000004"))
    for name, weight in start.items():
        assert torch.equal(weight, trained[name]) == (".layers.0." in name or ".layers." not in name), name
    shutil.rmtree(tmp_path / "run" / "step-00000004")
    assert train(place, tmp_path / "run", "--resume", recipe="retrofit-distilled") == 0
    again = load_file(tmp_path / "run" / "step-00000004" / "model.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in again)
    shutil.rmtree(tmp_path / "run" / "step-00000004")
    shutil.copytree(tmp_path / "run" / "step-00000002", tmp_path / "other")
    other = ("--init", str(tmp_path / "other"))
    assert train(place, tmp_path / "run", "--resume", *other, recipe="retrofit-distilled") == 2
    assert "teacher" in capsys.readouterr().err


def test_a_mistake_is_one_sentence_and_leaves_nothing(place, tmp_path, capsys) -> None:
    """What is there already, what has no tokenizer, what was prepared for another model, what has no start."""
    shutil.copytree(place / "backbone", tmp_path / "mute")
    for file in tmp_path.glob("mute/token*"):
        file.unlink()
    out, model = str(tmp_path / "out"), str(place / "model")
    mistakes = {
        "exists already": lambda: main(["retrofit", str(place / "backbone"), model]),
        "cannot be written": lambda: main(["retrofit", str(place / "backbone"), str(place / "text" / "0.txt" / "out")]),
        "no tokenizer": lambda: main(["retrofit", str(tmp_path / "mute"), out]),
        "family 'attractor'": lambda: main(["retrofit", model, out]),
        "give --init": lambda: main(["train", "language/retrofit", "--data", str(place / "own"), "--out", out]),
        "leave out --init": lambda: main(["train", "maze", "--init", model, "--out", out]),
        "attractor retrofit": lambda: main(
            [
                "train",
                "language/retrofit",
                "--init",
                str(place / "backbone"),
                "--data",
                str(place / "own"),
                "--out",
                out,
            ]
        ),
    }
    capsys.readouterr()
    for says, command in mistakes.items():
        assert command() == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"mute"}
    assert train(place, tmp_path / "a", data="other") == 2
    assert "--tokenizer" in capsys.readouterr().err
    command = [
        "train",
        "language/retrofit",
        "--init",
        model,
        "--data",
        str(place / "own"),
        "--out",
        str(tmp_path / "b"),
    ]
    assert main([*command, "--logger", "none", "--set", "model.hidden_size=64"]) == 2
    err = capsys.readouterr().err
    assert "only how it is solved" in err
    assert "model.hidden_size=64 (was 32)" in err


def test_until_it_is_trained_a_retrofit_is_the_original_by_default(place, tmp_path, capsys) -> None:
    """The command compares depths and says so; generation, evaluation and the Auto classes follow, training ends it."""
    command = ["retrofit", str(place / "backbone"), str(tmp_path / "new"), "--num-attractor-layers", "2"]
    assert main([*command, "--data", str(place / "text")]) == 0
    printed = capsys.readouterr().out
    assert all(
        row in printed for row in ("depth 1", "depth 2", "tolerance 0.0003", "tokens/s", "Depth 1 is the default")
    )
    backbone, model = (AutoModelForCausalLM.from_pretrained(place / name).eval() for name in ("backbone", "model"))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert (model(ids).logits - backbone(ids).logits).abs().max() < 1e-5
        assert (model(ids, tolerance=3e-4).logits - backbone(ids).logits).abs().max() > 1e-3
    sampled = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **sampled), backbone.generate(ids, **sampled))
    assert main(["generate", str(place / "model"), "--prompt", "the", "--max-new-tokens", "2"]) == 0
    assert "depth 1, stored in the checkpoint" in capsys.readouterr().err
    figures = attractor.evaluate(place / "model", place / "own")
    assert figures["budget"] == {"depth": 1}
    assert figures["results"]["text"]["evaluations"] == 1
    assert train(place, tmp_path / "run") == 0
    trained = attractor.load(tmp_path / "run").model
    assert trained.config.budget is None
    assert trained.budget() == {"tolerance": 3e-4, "max_evaluations": 6}
