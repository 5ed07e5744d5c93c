"""Runs that are killed, and disks that fill up: all checkpoints are complete, and a resumed run is the same run."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from attractor.cli import main
from attractor.experiment import puzzles as reasoning
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import GatedConvolutionUpdateConfig
from attractor.objectives import DeepSupervisionConfig
from attractor.recipes import MazeDataConfig, PuzzleRecipe
from attractor.training import Report, TrainConfig, find_checkpoint
from attractor.training.checkpoint import save_weights, verify

KILLS = 20
TINY = PuzzleRecipe(
    model=AttractorReasonerConfig(
        update=GatedConvolutionUpdateConfig(width=8), evaluations_per_segment=2, backprop_steps=1
    ),
    data=MazeDataConfig(num_puzzles=20, size=7),
    supervision=DeepSupervisionConfig(batch_size=4, max_segments=3),
    train=TrainConfig(num_steps=1000, warmup_fraction=0, log_every=1, checkpoint_every=1),
)


def slow_save(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write a checkpoint in the time of one or two steps."""
    time.sleep(0.02)
    save_weights(weights, folder)
    time.sleep(0.02)


def train_in_process(out: Path, sender: Connection, until: int | None, checkpoint_every: int) -> None:
    """Train or resume, and send the number of every step. Pause after step ``until``."""
    torch.set_num_threads(1)
    reasoning.run_loop = partial(reasoning.run_loop, save_model=slow_save)
    steps = []

    def send_step(report: Report) -> None:
        steps.append(report.step)
        sender.send(report.step)

    recipe = replace(TINY, train=replace(TINY.train, checkpoint_every=checkpoint_every))
    before = None if until is None else until - 1  # should_pause is called before the callbacks of the same step
    resume = any(out.glob("step-*"))
    reasoning.train_reasoner(
        recipe, out, resume=resume, callbacks=[send_step], should_pause=lambda: steps[-1:] == [before]
    )


def tensors(out: Path) -> dict[str, Any]:
    """Return the checksums of all tensors in the newest checkpoint."""
    checkpoint = find_checkpoint(out)
    verify(checkpoint)
    sums = json.loads((checkpoint / "checksums.json").read_text())["files"]
    return {name: value for name, value in sums.items() if name.endswith((".safetensors", ".distcp"))}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and forkserver")
def test_a_run_that_is_killed_twenty_times_is_bitwise_the_uninterrupted_one(tmp_path) -> None:
    """It is killed at random times, also while it writes. After each time the newest checkpoint is complete."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["attractor.cli", "attractor.experiment.language", __name__])

    def begin(name: str, until: int | None = None, checkpoint_every: int = 1) -> tuple[Any, Connection]:
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=train_in_process, args=(tmp_path / name, sender, until, checkpoint_every))
        process.start()
        sender.close()
        return process, receiver

    rng, while_writing, step = random.Random(0), 0, 0
    for _ in range(KILLS):
        process, receiver = begin("killed")
        for _ in range(rng.randint(1, 3)):
            step = receiver.recv()
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.join()
        with suppress(EOFError):
            while True:
                step = receiver.recv()
        while_writing += any((tmp_path / "killed").glob(".part-*"))
        if any((tmp_path / "killed").glob("step-*")):
            verify(find_checkpoint(tmp_path / "killed"))
    assert while_writing > KILLS / 4
    for name, checkpoint_every in (("killed", 1), ("uninterrupted", 0)):
        process, receiver = begin(name, step + 3, checkpoint_every)
        process.join()
        assert process.exitcode == 0
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "uninterrupted")
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 4))


def command(out: Path, *more: str, num_steps: int = 4, settings: tuple[str, ...] = ()) -> list[str]:
    changed = [
        "model.update.width=8",
        "model.evaluations_per_segment=2",
        "model.backprop_steps=1",
        "train.seconds=null",
        "data.num_puzzles=20",
    ]
    changed += ["data.size=7", "data.style=perfect", "data.min_path=1"]
    changed += [f"train.num_steps={num_steps}", "train.log_every=1", "train.checkpoint_every=2"]
    return ["train", "maze", "--out", str(out), *more, "--set", *changed, *settings]


def flip(file: Path) -> None:
    """Change one bit near the end of the file, in a shard after the first MiB."""
    data = bytearray(file.read_bytes())
    data[len(data) * 9 // 10] ^= 1
    file.write_bytes(data)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence with which a command fails."""
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("attractor: ")
    assert err.count("\n") == 1
    return err


def test_a_flipped_bit_in_any_file_of_a_checkpoint_prevents_resuming(tmp_path, capsys) -> None:
    """The message names the file, and nothing is written."""
    out = tmp_path / "run"
    assert main(command(out)) == 0
    checkpoint = find_checkpoint(out)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert len(files) == 7
    for file in files:
        original, log = file.read_bytes(), (out / "metrics.jsonl").stat().st_mtime_ns
        flip(file)
        sentence = refused(command(out, "--resume", num_steps=6), capsys)
        assert str(file) in sentence
        assert (out / "metrics.jsonl").stat().st_mtime_ns == log
        file.write_bytes(original)
    assert main(command(out, "--resume", num_steps=6)) == 0


def test_a_flipped_bit_in_training_data_prevents_training(tmp_path, capsys) -> None:
    """The message names the file, and no run is started."""
    (tmp_path / "text.txt").write_text("the sea was flat and a small boat went out past old walls. " * 12_000)
    text = ["data", "prepare", str(tmp_path / "text.txt"), "--out", str(tmp_path / "tokens"), "--vocab-size", "260"]
    assert main([*text, "--val-fraction", "0"]) == 0
    boards = ["data", "sudoku", "--out", str(tmp_path / "boards"), "--size", "4", "--num", "20", "--num-test", "5"]
    assert main(boards) == 0
    for folder, name in (("tokens", "language/tiny"), ("boards", "sudoku/6x6")):
        files = [*(tmp_path / folder).glob("train*")]
        assert files
        for file in files:
            original = file.read_bytes()
            flip(file)
            arguments = ["train", name, "--data", str(tmp_path / folder), "--out", str(tmp_path / "run")]
            assert str(file) in refused([*arguments, "--set", "train.num_steps=1"], capsys)
            assert not (tmp_path / "run").exists()
            file.write_bytes(original)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Return the folder of a file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("left", [0, 20_000, 200_000])
@pytest.mark.parametrize("logger", ["none", "tensorboard"])
def test_a_full_disk_ends_a_run_with_one_sentence(left: int, logger: str, small_disk, capsys) -> None:
    """The log, the curves or a checkpoint may fill it. Once there is free space, the run resumes."""
    out, ballast = small_disk / "run", small_disk / "ballast"
    arguments = ["--logger", logger]
    assert main(command(out, *arguments)) == 0
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast.write_bytes(bytes(free - left))
    long = {"num_steps": 2000, "settings": ("train.max_checkpoints=100",)}
    sentence = refused(command(out, *arguments, "--resume", **long), capsys)
    assert "free some disk space" in sentence
    verify(find_checkpoint(out))
    assert not list(out.glob(".part-*"))
    ballast.unlink()
    before = int(find_checkpoint(out).name.removeprefix("step-"))
    assert main(command(out, *arguments, "--resume", num_steps=before + 2)) == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, before + 3))
