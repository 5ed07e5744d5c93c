"""Received folders and accidents: no code of strangers runs, no path leads out of a folder, no file is half-written."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from attractor.cli import main
from attractor.data import maze
from attractor.data.text import train_tokenizer
from attractor.errors import CheckpointError
from attractor.files.lock import owner_lock
from attractor.files.manifest import compute_checksums, list_files, write_checksum_file, write_checksums
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.training import find_checkpoint
from attractor.training.checkpoint import load, verify

OFFICIAL = Path(__file__).parents[1] / "interop" / "official_tiny"
FILE = Path(__file__).parents[2] / "README.md"
FAST = ["model.update.width=8", "model.evaluations_per_segment=2", "model.backprop_steps=1", "train.seconds=null"]
FAST += ["train.num_steps=2", "train.log_every=1", "data.num_puzzles=20", "data.size=7"]
FAST += ["data.style=perfect", "data.min_path=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    assert main(train_command(out)) == 0
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    tokenizer = train_tokenizer(["the sea and the moon and the night"] * 3, 265)
    sizes = {"vocab_size": 265, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AttractorConfig(**sizes, **special, num_attention_heads=2, max_position_embeddings=64)
    AttractorForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_checksums(folder)
    return folder


@pytest.fixture
def model(language: Path, tmp_path: Path) -> Path:
    shutil.copytree(language, tmp_path / "model")
    return tmp_path / "model"


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence with which a command fails."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("attractor: ")
    assert err.count("\n") == 1
    return err


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def train_command(out: Path, *more: str) -> list[str]:
    return ["train", "maze", "--out", str(out), "--logger", "none", *more, "--set", *FAST]


CODE = """
from pathlib import Path
Path({file!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class Config(PretrainedConfig):
    model_type = "stranger"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("where", ["model", "tokenizer", "generate"])
def test_code_in_a_received_folder_is_refused_by_name_and_never_asked_about(
    where, model, tmp_path, monkeypatch, capsys
):
    """By every command that loads a model or a tokenizer. Standard input, which would answer yes, is not read."""
    ran, held_out = tmp_path / "ran", tmp_path / "text.txt"
    held_out.write_text("the sea and the moon " * 50)
    (model / "checksums.json").unlink()
    (model / "code.py").write_text(CODE.format(file=str(ran)))
    if where == "model":
        auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
        edit(model / "config.json", auto_map=auto_map, model_type="stranger", architectures=["Model"])
    elif where == "tokenizer":
        edit(
            model / "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["code.Tokenizer", None]},
            tokenizer_class="Tokenizer",
        )
    else:
        (model / "custom_generate").mkdir()
        shutil.copy(model / "code.py", model / "custom_generate" / "generate.py")

    class Answering:
        def readline(self, *_: object) -> str:
            pytest.fail("standard input was read")

        read = readline

    monkeypatch.setattr(sys, "stdin", Answering())
    commands: list[list[object]] = [
        ["generate", model, "--prompt", "the"],
        ["evaluate", model, "--data", held_out],
        ["calibrate", model, "--data", held_out],
        ["inspect", model, "--data", held_out, "--out", tmp_path / "page"],
        ["export", model, tmp_path / "stock", "--depth", "1"],
        ["retrofit", model, tmp_path / "new"],
        ["data", "prepare", held_out, "--out", tmp_path / "tokens", "--tokenizer", model],
        ["train", "language/retrofit", "--init", model, "--data", tmp_path, "--out", tmp_path / "run"],
    ]
    for command in commands:
        assert "asks to run code of its own (auto_map)" in refused(command, capsys), command
    assert not ran.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "text.txt"]


class Attack:
    """What runs when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def reseal(checkpoint: Path) -> None:
    """Write right checksums, as anybody can."""
    write_checksum_file(checkpoint, compute_checksums(checkpoint, list_files(checkpoint)))


def test_no_command_runs_code_in_a_received_checkpoint(run, tmp_path, capsys) -> None:
    """The index of its shards is a pickle; its checksums are right."""
    ran, checkpoint = tmp_path / "ran", find_checkpoint(run)
    (checkpoint / "training" / ".metadata").write_bytes(pickle.dumps(Attack(ran)))
    reseal(checkpoint)
    verify(checkpoint)
    assert "which no checkpoint needs" in refused(["export-inference", run, tmp_path / "out", "--latest"], capsys)
    resume = [*train_command(run, "--resume"), "train.num_steps=4"]
    assert "which no checkpoint needs" in refused(resume, capsys)
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


def test_an_entry_of_a_checkpoint_that_is_no_tensor_is_not_unpickled(run, tmp_path) -> None:
    """PyTorch unpickles such entries without restriction."""
    checkpoint = find_checkpoint(run)
    file = checkpoint / "training" / ".metadata"
    index = pickle.loads(file.read_bytes())
    name = next(iter(index.state_dict_metadata))
    index.state_dict_metadata[name] = torch.distributed.checkpoint.metadata.BytesStorageMetadata()
    file.write_bytes(pickle.dumps(index))
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match="which no checkpoint needs"):
        load(checkpoint, {}, partial=True)


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "training/../../escaped"])
def test_names_in_a_received_checkpoint_do_not_lead_out_of_it(name: str, run, tmp_path, capsys) -> None:
    """Names of files in its checksums, and of shards in its index."""
    checkpoint = find_checkpoint(run)
    (checkpoint.parent / "escaped").write_text("mine")
    data = json.loads((checkpoint / "checksums.json").read_text())
    files = data["files"] | {name: data["files"]["run.json"]}
    own = zlib.crc32(json.dumps(files, sort_keys=True).encode())
    (checkpoint / "checksums.json").write_text(json.dumps({"crc32": own, "files": files}))
    assert "is no plain name inside its folder" in refused(["export-inference", run, tmp_path / "out"], capsys)
    assert (checkpoint.parent / "escaped").read_text() == "mine"
    (checkpoint / "checksums.json").unlink()
    file = checkpoint / "training" / ".metadata"
    index = pickle.loads(file.read_bytes())
    for entry in index.storage_data.values():
        entry.relative_path = name
    file.write_bytes(pickle.dumps(index))
    reseal(checkpoint)
    assert "is no plain name" in refused(["export-inference", run, tmp_path / "out", "--latest"], capsys)
    assert not (tmp_path / "out").exists()


def test_shards_of_a_received_model_do_not_lead_out_of_it(model, tmp_path, capsys) -> None:
    """Neither by name nor by a link."""
    (model / "checksums.json").unlink()
    weights = (model / "model.safetensors").rename(tmp_path / "secret.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": f"../{weights.name}"}})
    )
    assert "is no plain name" in refused(["generate", model, "--prompt", "the"], capsys)
    (model / "model.safetensors.index.json").unlink()
    (model / "model.safetensors").symlink_to(weights)
    assert "is a link that leads out of its folder" in refused(["generate", model, "--prompt", "the"], capsys)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_pipe_in_a_received_model_is_not_opened(name: str, model, tmp_path, capsys) -> None:
    """Reading it would never end."""
    (model / "checksums.json").unlink()
    (model / name).unlink()
    os.mkfifo(model / name)
    for command in (
        ["generate", model, "--prompt", "a"],
        ["retrofit", model, tmp_path / "out"],
        ["data", "prepare", FILE, "--out", tmp_path / "out", "--tokenizer", model],
    ):
        assert "is no regular file" in refused(command, capsys) or name == "config.json"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer_class": "BertTokenizer"},
        {"model_max_length": "x"},
        {"model_max_length": []},
        {"tokenizer_class": "T5Tokenizer"},
        {"padding_side": 3},
        {"extra_special_tokens": {"a": 3}},
    ],
    ids=repr,
)
def test_settings_of_a_received_tokenizer_that_make_no_sense_are_one_sentence(changes, model, tmp_path, capsys) -> None:
    """Whatever the library raises, wherever it raises it; a setting without effect may be accepted."""
    (model / "checksums.json").unlink()
    edit(model / "tokenizer_config.json", **changes)
    for command in (
        ["generate", model, "--prompt", "the sea", "--max-new-tokens", "1"],
        ["data", "prepare", FILE, "--out", tmp_path / "out", "--tokenizer", model, "--val-fraction", "0"],
    ):
        code = main([str(argument) for argument in command])
        assert code == 0 or (code == 2 and capsys.readouterr().err.count("attractor: ") == 1), command


def test_attention_kernels_of_the_hub_are_refused(model, capsys) -> None:
    """They are code of strangers, which a configuration names."""
    (model / "checksums.json").unlink()
    for name in ("_attn_implementation", "attn_implementation", "experts_implementation"):
        original = (model / "config.json").read_text()
        edit(model / "config.json", **{name: "someone/kernel"})
        assert "asks to run code of its own" in refused(["generate", model, "--prompt", "a"], capsys)
        (model / "config.json").write_text(original)


@pytest.mark.parametrize("option", ["--max-evaluations=-1", "--tolerance=-1", "--depth=-1", "--max-evaluations=0"])
def test_a_budget_that_makes_no_sense_is_found_before_anything_is_printed(option: str, model, capsys) -> None:
    assert "give a" in refused(["generate", model, "--prompt", "the sea", option], capsys)
    main(["generate", str(model), "--prompt", "the sea", option])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "changes", [{"bos_token_id": "x"}, {"eos_token_id": ["x"]}, {"suppress_tokens": "x"}, {"num_beams": "x"}], ids=repr
)
def test_a_generation_config_that_makes_no_sense_is_one_sentence(changes, model, capsys) -> None:
    """Of a received model, without checksums; a setting without effect may be accepted."""
    (model / "checksums.json").unlink()
    edit(model / "generation_config.json", **changes)
    code = main(["generate", str(model), "--prompt", "the", "--max-new-tokens", "2"])
    assert code == 0 or (code == 2 and capsys.readouterr().err.count("attractor: ") == 1)


def test_names_of_settings_with_control_characters_are_refused(model, capsys) -> None:
    """A library prints those that it does not know; values are not printed."""
    (model / "checksums.json").unlink()
    token = {"content": "<x>", "special": True, "a\x1b[31m": 1}
    edit(model / "tokenizer_config.json", added_tokens_decoder={"3": token})
    assert "control characters in its name" in refused(["generate", model, "--prompt", "a"], capsys)
    edit(model / "tokenizer_config.json", added_tokens_decoder={}, chat_template="{{ x }}\n\x1b: ")
    assert main(["generate", str(model), "--prompt", "a", "--max-new-tokens", "1"]) == 0


def test_messages_of_libraries_with_foreign_text_do_not_reach_the_terminal(model, tmp_path) -> None:
    """Such as the type of a model in its config.json, when its tokenizer is loaded."""
    (model / "checksums.json").unlink()
    edit(model / "config.json", model_type="qwen3\x1b[31m")
    command = ["data", "prepare", FILE, "--out", tmp_path / "out", "--tokenizer", model, "--val-fraction", "0"]
    done = subprocess.run([sys.executable, "-m", "attractor", *command], capture_output=True, check=False)
    assert done.returncode in (0, 2)
    assert b"\x1b" not in done.stderr + done.stdout


def test_a_run_is_written_by_one_process(run, capsys) -> None:
    """Also with --overwrite, which leaves the other run as it is."""
    before = sorted((p.name, p.stat().st_mtime_ns) for p in run.rglob("*"))
    with owner_lock(run / ".lock"):
        for how in ("--resume", "--overwrite"):
            assert "is being written by process" in refused(train_command(run, how), capsys)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in run.rglob("*")) == before


def test_overwriting_removes_only_what_a_run_wrote(run, capsys) -> None:
    """Similar names of other people stay."""
    foreign = ["step-by-step-notes/a", "step-12/a", ".part-mine/a", "tensorboard/notes.txt", "notes.txt"]
    for name in foreign:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    (run / "tensorboard" / "events.out.tfevents.1").touch()
    assert main(train_command(run, "--overwrite")) == 0
    assert all((run / name).read_text() == "mine" for name in foreign)
    assert not (run / "tensorboard" / "events.out.tfevents.1").exists()
    (run / "step-00000009").mkdir()
    (run / "step-00000009" / "thesis.tex").touch()
    assert "is no checkpoint of an earlier run" in refused(train_command(run, "--overwrite"), capsys)
    assert (run / "step-00000009" / "thesis.tex").exists()


def test_leftovers_of_a_killed_run_do_not_block_the_next(tmp_path) -> None:
    """A folder that holds only these counts as empty."""
    out = tmp_path / "run"
    (out / ".part-step-00000002" / "training").mkdir(parents=True)
    (out / ".lock").write_text("")
    assert main(train_command(out)) == 0
    assert not list(out.glob(".*"))


def test_an_output_is_never_an_input(run, model, tmp_path, capsys) -> None:
    """No file of a model, of a checkpoint or of data is replaced."""
    mazes, checkpoint = tmp_path / "mazes.csv", find_checkpoint(run)
    mazes.write_text("question,answer\n")
    text = tmp_path / "text.txt"
    text.write_text("the sea " * 50)
    before = {p: p.read_bytes() for folder in (run, model) for p in folder.rglob("*") if p.is_file()}
    for command in (
        ["evaluate", run, "--data", mazes, "--out", checkpoint / "model.safetensors"],
        ["evaluate", run, "--data", mazes, "--out", checkpoint / "new.json"],
        ["evaluate", model, "--data", text, "--out", model / "config.json"],
        ["evaluate", model, "--data", text, "--out", text],
        ["cost", "maze", "--out", checkpoint / "run.json"],
    ):
        assert "choose another place for the output" in refused(command, capsys), command
    for out in (checkpoint, model):
        assert "lies in" in refused(["inspect", model, "--data", text, "--out", out, "--overwrite"], capsys)
        assert "lies in" in refused(["export", model, out / "new", "--depth", "1"], capsys)
        assert "lies in" in refused(train_command(out / "new"), capsys)
    assert {p: p.read_bytes() for folder in (run, model) for p in folder.rglob("*") if p.is_file()} == before


def test_a_flipped_bit_in_any_json_of_a_model_is_found(run, model, tmp_path, capsys) -> None:
    """By the commands that use it, if there are checksums."""
    mazes = tmp_path / "maze.txt"
    maze.write(mazes, list(maze.generate(1, 9, seed=0).questions))
    for folder, command in (
        (model, ["generate", model, "--prompt", "the", "--max-new-tokens", "2"]),
        (find_checkpoint(run), ["solve", run, mazes, "--depth", "2"]),
    ):
        for file in folder.glob("*.json"):
            if file.name == "training.json":
                continue
            original = file.read_bytes()
            for place in range(3, len(original), max(1, len(original) // 4)):
                data = bytearray(original)
                data[place] ^= 1
                file.write_bytes(data)
                assert file.name in refused(command, capsys)
            file.write_bytes(original)
        assert main([str(word) for word in command]) in (0, 1)  # a wrong answer


def test_a_log_that_is_no_file_is_refused_before_the_other_changes(run, capsys) -> None:
    """A pipe, a loop of links or a folder in its place."""
    lines = [run / "events.jsonl", run / "metrics.jsonl"]
    before = lines[1].stat().st_mtime_ns
    for make in (os.mkfifo, lambda path: path.symlink_to(path.name), Path.mkdir):
        lines[0].unlink()
        make(lines[0])
        assert "events.jsonl: is no regular file" in refused([*train_command(run), "--resume"], capsys)
        assert lines[1].stat().st_mtime_ns == before
        lines[0].rmdir() if make is Path.mkdir else lines[0].unlink()
        lines[0].touch()


def test_damaged_lines_of_a_log_are_set_aside_and_counted(run, capsys) -> None:
    """They do not prevent resuming."""
    log, damaged = (
        run / "metrics.jsonl",
        [b'{"step": \xff}\n', b"[1]\n", b"{}\n", b'{"step": "a"}\n', b"[" * 100_000 + b"\n"],
    )
    good = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(good[0] + b"".join(damaged) + good[1] + b'{"step": 2, "lo')
    (run / "events.jsonl").write_bytes(b"\x00\n")
    assert main([*train_command(run, "--resume"), "train.num_steps=3"]) == 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3]
    assert (run / "metrics.damaged.jsonl").read_bytes() == b"".join(damaged)
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert any("damaged lines of metrics.jsonl: 5" in event for event in events)
    assert any("damaged lines of events.jsonl: 1" in event for event in events)


def test_verifying_data_reads_the_tokenizer_and_the_index(tmp_path, capsys) -> None:
    """A folder without checksums is verified as far as it can be, and the command says what it leaves out."""
    (tmp_path / "text.txt").write_text("the sea was flat and a small boat went out past old walls. " * 2000)
    out = tmp_path / "tokens"
    prepare = [
        "data",
        "prepare",
        str(tmp_path / "text.txt"),
        "--out",
        str(out),
        "--vocab-size",
        "260",
        "--val-fraction",
        "0",
    ]
    assert main(prepare) == 0
    for file in [p for p in out.rglob("*") if p.is_file()]:
        original = file.read_bytes()
        file.write_bytes(original[:-9] + bytes([original[-9] ^ 1]) + original[-8:])
        assert file.name in refused(["data", "verify", out], capsys)
        file.write_bytes(original)
    assert main(["data", "verify", str(out)]) == 0
    assert "have none" not in capsys.readouterr().out
    (out / "checksums.json").unlink()
    assert main(["data", "verify", str(out)]) == 0
    assert "index.json and the tokenizer have none" in capsys.readouterr().out


@pytest.fixture
def small_disk(tmp_path):
    """Return the folder of a file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="module")
def backbone(language: Path, tmp_path_factory) -> Path:
    """A Llama with the tokenizer of ``language``."""
    folder = tmp_path_factory.mktemp("backbone")
    sizes = {"vocab_size": 265, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, eos_token_id=0)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(language).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("free", [0, 4096])
def test_a_full_disk_ends_every_writer_with_one_sentence(
    free: int, run, model, backbone, small_disk, tmp_path, capsys
) -> None:
    """And nothing of it is left, also where there is no space for a lock."""
    mazes, text = tmp_path / "maze.txt", tmp_path / "text.txt"
    maze.write(mazes, list(maze.generate(1, 9, seed=0).questions))
    text.write_text("the sea was flat and a small boat went out past old walls. " * 2000)
    (tmp_path / "short.txt").write_text("the sea was flat and a small boat")
    (small_disk / "ballast").write_bytes(bytes(65536 - free))
    commands = [
        ["export", model, small_disk / "out", "--depth", "1"],
        ["export-inference", run, small_disk / "out"],
        ["retrofit", backbone, small_disk / "out"],
        ["solve", run, mazes, "--depth", "30", "--gif", small_disk / "a.gif"],
        ["inspect", model, "--data", tmp_path / "short.txt", "--out", small_disk / "page", "--depths", "1"],
        ["data", "prepare", text, "--out", small_disk / "tokens", "--vocab-size", "260", "--val-fraction", "0"],
        ["data", "sudoku", "--out", small_disk / "boards", "--size", "4", "--num", "20", "--num-test", "5"],
        ["import", OFFICIAL, small_disk / "out"],
    ]
    if not free:
        commands.append(train_command(small_disk / "run"))
    for command in commands:
        assert "free some disk space" in refused(command, capsys), command
        assert [p.name for p in small_disk.iterdir()] == ["ballast"], command


def test_a_full_disk_in_the_curves_is_one_sentence_and_no_thread_complains(small_disk, tmp_path) -> None:
    """Everything that was drawn before can be read; the process prints nothing else, also at its end."""
    code = """
import sys
from pathlib import Path
from attractor.errors import ConfigError
from attractor.training.log import Report
from attractor.training.loggers import make_logger
draw, step = make_logger("tensorboard", Path(sys.argv[1]), "maze", {}), 0
try:
    while True:
        step += 1
        draw(Report(step=step, seconds=1.0, progress=0.0, lr=0.1, metrics={"loss": 2.0}))
except ConfigError as error:
    print(step, error)
"""
    done = subprocess.run([sys.executable, "-c", code, small_disk], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    step, sentence = done.stdout.split(maxsplit=1)
    assert sentence.count("\n") == 1
    assert "tensorboard: cannot be written (No space left on device); free some disk space" in sentence
    curves = EventAccumulator(str(small_disk / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [(event.step, event.value) for event in curves.Scalars("loss")] == [(s, 2.0) for s in range(1, int(step))]
