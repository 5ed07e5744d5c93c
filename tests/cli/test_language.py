"""From a folder of text to a model that is trained, resumed and evaluated, and continues a prompt."""

import io
import json
import random
import shutil
import sys

import pytest
import torch

from attractor.cli import main
from attractor.evaluation import calibrate
from attractor.experiment.loading import load_language_model
from attractor.recipes import fit_to_model, retrofit
from attractor.training.checkpoint import verify

WORDS = [
    *"abcdefgh",
    "the sea was blue",
    "a small boat",
    "went out past",
    "old walls of stone",
    "to find",
    "some light",
]
SMALL = [
    "model.hidden_size=32", "model.intermediate_size=64", "model.num_hidden_layers=3", "model.num_attention_heads=2",
    "model.max_position_embeddings=32", "text.length=32",
    "text.batch_size=4", "train.num_steps=6", "train.log_every=2", "train.checkpoint_every=3",
]  # fmt: skip


def write_text(folder, *, seed: int = 0) -> None:
    rng = random.Random(seed)
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(". ".join(" ".join(rng.choices(WORDS, k=9)) for _ in range(40)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Prepared text, and another with a vocabulary of its own."""
    folder = tmp_path_factory.mktemp("data")
    write_text(folder / "text")
    for vocab_size in (300, 290):
        out = str(folder / f"tokens{vocab_size}")
        command = ["data", "prepare", str(folder / "text"), "--out", out, "--vocab-size", str(vocab_size)]
        assert main([*command, "--val-fraction", "0.2"]) == 0
    return folder


def train(data, out, *more: str, family: str = "", name: str = "tokens300") -> int:
    command = ["train", f"language/tiny{family}", "--data", str(data / name), "--out", str(out), *more]
    return main([*command, "--set", *SMALL])


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "whole"
    assert train(data, out) == 0
    return out


def test_four_commands_lead_from_text_to_a_writing_model(run, data, tmp_path, capsys) -> None:
    """Each reads what the one before wrote."""
    figures = tmp_path / "figures.json"
    evaluate_depths = ["evaluate", str(run), "--data", str(data / "tokens300"), "--out", str(figures), "--depth", "1"]
    assert main(evaluate_depths) == 0
    assert json.loads(figures.read_text())["results"]["text"]["bits_per_byte"] > 0
    capsys.readouterr()
    assert main(["generate", str(run), "--prompt", "the sea", "--max-new-tokens", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("the sea")
    assert "tokens in" in captured.err


@pytest.mark.parametrize("more", [[], ["--latest"]])
def test_an_exported_checkpoint_is_evaluated_and_generates(more: list[str], run, data, tmp_path, capsys) -> None:
    """Without anything of training in it; this recipe averages no weights, so that the latest are the same."""
    out = tmp_path / "model"
    assert main(["export-inference", str(run), str(out), *more]) == 0
    assert {"config.json", "model.safetensors", "run.json", "tokenizer.json"} < {p.name for p in out.iterdir()}
    assert not any(p.name.startswith(("training", "rank-")) for p in out.iterdir())
    whole, alone = (load_language_model(path).model.state_dict() for path in (run, out))
    assert all(torch.equal(whole[name], alone[name]) for name in whole)
    assert main(["evaluate", str(out), "--data", str(data / "tokens300"), "--limit", "1"]) == 0
    assert main(["generate", str(out), "--prompt", "the sea", "--max-new-tokens", "2"]) == 0
    assert main(["calibrate", str(out), "--data", str(data / "tokens300"), "--max-loss-increase", "0.5"]) == 0
    verify(out)
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert main(["generate", str(out), "--prompt", "the sea"]) == 2
    assert "model.safetensors: does not match its checksum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "typed", "begins"),
    [
        ("-", b"the sea \xff\xfe", "the sea \ufffd\ufffd"),
        ("-", b"\xef\xbb\xbfthe sea", "the sea"),
        ("-", "the sea".encode("utf-16"), "the sea"),
        ("the sea \udcff", b"", "the sea \ufffd"),
    ],
)
def test_a_prompt_may_hold_any_bytes(prompt: str, typed: bytes, begins: str, run, monkeypatch, capsys) -> None:
    """Of standard input and of the command line: what is no text is replaced, and a byte-order mark names the encoding."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed)))
    assert main(["generate", str(run), "--prompt", prompt, "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().out.startswith(begins)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_of_any_encoding_is_written(encoding: str, run, data, monkeypatch) -> None:
    """What it lacks becomes an escape sequence, in text and in tables."""
    for command in (
        ["generate", str(run), "--prompt", "sea → Ω", "--max-new-tokens", "1"],
        ["data", "verify", str(data / "tokens300")],
    ):
        written = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
        assert main(command) == 0
        sys.stdout.flush()
        assert written.getvalue().decode(encoding)
        assert command[0] == "data" or b"sea \\u2192 \\u03a9" in written.getvalue()


def test_the_same_seed_writes_the_same_text(run, capsys) -> None:
    """And temperature 0 needs none."""
    written = []
    for seed, temperature in ((1, "1"), (1, "1"), (2, "0"), (3, "0")):
        command = ["generate", str(run), "--prompt", "a", "--max-new-tokens", "8", "--temperature", temperature]
        assert main([*command, "--seed", str(seed)]) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1]
    assert written[2] == written[3]


def test_a_calibrated_budget_is_the_cheapest_that_loses_little_and_all_commands_keep_to_it(
    run, data, tmp_path, capsys
) -> None:
    """The checkpoint stays whole; training from it starts without the budget."""
    copy = tmp_path / "copy"
    shutil.copytree(run / "step-00000006", copy)
    assert main(["calibrate", str(copy), "--data", str(data / "tokens300"), "--max-loss-increase", "0.5"]) == 0
    assert "stored depth 0" in capsys.readouterr().out  # half the loss may go
    assert main(["evaluate", str(copy), "--data", str(data / "tokens300")]) == 0
    assert "budget: depth 0" in capsys.readouterr().out
    assert main(["generate", str(copy), "--prompt", "a", "--max-new-tokens", "2"]) == 0
    assert "depth 0, stored in the checkpoint" in capsys.readouterr().err
    loaded = load_language_model(copy)
    model, tokenizer = loaded.model, loaded.tokenizer
    assert model.config.budget == {"depth": 0}
    assert fit_to_model(retrofit(), model.config).model.budget is None
    found = calibrate(model, tokenizer, ["the sea and the land " * 20], length=32, max_loss_increase=1e-9)
    enough = [t for t in found.budgets if t.score.nats <= found.reference.score.nats]
    assert found.chosen in enough
    assert all(found.chosen.flops_per_token <= t.flops_per_token for t in enough)
    assert main(["calibrate", str(copy), "--data", str(data / "tokens300"), "--max-loss-increase", "0"]) == 2
    assert "above zero" in capsys.readouterr().err


def test_generation_ends_where_the_context_does(run, capsys) -> None:
    """And says so."""
    command = ["generate", str(run), "--prompt", "a", "--max-new-tokens", "500", "--temperature", "0", "--depth", "0"]
    assert main(command) == 0
    err = capsys.readouterr().err
    assert "context is full" in err or int(err.split()[0]) < 31


def test_the_log_has_the_figures_of_a_solve(run) -> None:
    """And the run's settings, environment and commit lie beside the weights."""
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    for name in (
        "loss", "tokens", "tokens_per_second", "mfu", "evaluations", "residual", "proposal_distance",
        "gate", "spectral_radius", "grad_norm",
    ):  # fmt: skip
        assert name in line, name
    described = json.loads((run / "step-00000006" / "run.json").read_text())
    assert described["recipe"]["model"]["vocab_size"] == 300
    assert {"commit", "torch", "python", "device"} <= described["environment"].keys()
    assert list((run / "tensorboard").iterdir())


@pytest.mark.parametrize("family", ["", "-looped"])
def test_an_interrupted_run_ends_bitwise_like_a_whole_one(family: str, data, tmp_path) -> None:
    """Weights, optimiser moments of AdamW and Muon, and the position in the text."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(data, whole, "--logger", "none", family=family) == 0
    assert train(data, parts, "--logger", "none", family=family) == 0
    shutil.rmtree(parts / "step-00000006")  # only the checkpoint of its middle is left
    assert train(data, parts, "--resume", "--logger", "none", family=family) == 0
    a, b = (json.loads((out / "step-00000006" / "checksums.json").read_text())["files"] for out in (whole, parts))
    tensors = [name for name in a if name.endswith((".safetensors", ".distcp"))]
    assert len(tensors) == 3
    assert all(a[name] == b[name] for name in tensors)


@pytest.mark.parametrize("family", ["-transformer", "-deq"])
def test_every_family_trains(family: str, data, tmp_path) -> None:
    """Under the same loop, and is loaded again and evaluated."""
    layers = ["model.num_attractor_layers=3"] if family == "-deq" else []
    command = ["train", f"language/tiny{family}", "--data", str(data / "tokens300"), "--out", str(tmp_path / "run")]
    assert main([*command, "--logger", "none", "--set", *SMALL, *layers]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--data", str(data / "tokens300"), "--limit", "1"]) == 0


MISTAKES = {
    "no data": (["train", "language/tiny"], "--data FOLDER"),
    "no such folder": (["train", "language/tiny", "--data", "NOWHERE"], "attractor data prepare"),
    "data for mazes": (["train", "maze", "--data", "DATA"], "not the index of puzzles"),
    "rows too long": (
        ["train", "language/tiny", "--data", "DATA", "--set", "text.length=512"],
        "max_position_embeddings",
    ),
    "other tokenizer": (["--resume", "--data", "OTHER"], "text.tokenizer"),
    "other settings": (["--resume", "--data", "DATA", "--set", *SMALL, "model.window=3"], "model.window"),
    "unknown family": (["train", "language/tiny-looping", "--data", "DATA"], "language/tiny-looped"),
    "unknown tracker": (
        ["train", "language/tiny", "--data", "DATA", "--logger", "tensorbord"],
        "did you mean 'tensorboard'",
    ),
    "impossible model": (
        ["train", "language/tiny", "--data", "DATA", "--set", "model.num_attractor_layers=9"],
        "exceeds",
    ),
    "a reasoner's command": (["solve", "RUN", "maze.txt"], "'reasoner' is needed"),
    "long prompt": (["generate", "RUN", "--prompt", "sea " * 60], "shorten it"),
    "tolerance": (["generate", "RUN", "--prompt", "a", "--tolerance", "1e-9"], "below the precision of float32"),
    "depth and tolerance": (["generate", "RUN", "--prompt", "a", "--depth", "1", "--tolerance", "1e-2"], "not both"),
    "negative depth": (["generate", "RUN", "--prompt", "a", "--depth", "-1"], "whole number from 0 up"),
    "resume and overwrite": (["--resume", "--overwrite", "--data", "DATA"], "give one of them"),
    "nothing to overwrite with": (["--overwrite", "--data", "NOWHERE"], "attractor data prepare"),
    "negative temperature": (["generate", "RUN", "--prompt", "a", "--temperature", "-1"], "temperature=-1"),
}


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_a_mistake_is_one_sentence_and_exit_code_2(name: str, run, data, tmp_path, capsys) -> None:
    """And the run that is there stays as it was."""
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    places = {"DATA": data / "tokens300", "OTHER": data / "tokens290", "RUN": run, "NOWHERE": tmp_path / "nowhere"}
    arguments, says = MISTAKES[name]
    arguments = [str(places.get(a, a)) for a in arguments]
    if arguments[0] in ("--resume", "--overwrite"):
        arguments = ["train", "language/tiny", "--out", str(run), *arguments]
        arguments += [] if "--set" in arguments else ["--set", *SMALL]
    elif arguments[0] == "train":
        arguments[2:2] = ["--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_losses_that_are_not_finite_are_skipped_and_then_end_the_run(data, tmp_path, capsys) -> None:
    """With advice; what was written before stays whole."""
    out = tmp_path / "run"
    command = ["train", "language/tiny", "--data", str(data / "tokens300"), "--out", str(out), "--logger", "none"]
    extreme = [
        "train.optimizer.lr=1e30",
        "train.optimizer.muon_lr=1e30",
        "train.guard.max_skipped=1",
        "train.num_steps=30",
    ]
    assert main([*command, "--set", *SMALL, *extreme]) == 2
    assert "bad steps in a row" in capsys.readouterr().err


def test_a_torn_log_does_not_stop_a_resumed_run(data, tmp_path) -> None:
    """What was written when the machine stopped is dropped."""
    out = tmp_path / "run"
    assert train(data, out, "--logger", "none") == 0
    with (out / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7, "sec')
    assert train(data, out, "--resume", "--logger", "none") == 0
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6]
