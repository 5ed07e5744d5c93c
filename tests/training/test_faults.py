"""Runs that are killed, and disks that fill up: whatever happens, what is there is whole, and a resumed run is the same run."""

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
from attractor.nn import ConvolutionUpdateConfig
from attractor.objectives import DeepSupervisionConfig
from attractor.recipes import MazeDataConfig, PuzzleRecipe
from attractor.training import Report, TrainConfig, find_checkpoint
from attractor.training.checkpoint import save_weights, verify

KILLS = 20
TINY = PuzzleRecipe(
    model=AttractorReasonerConfig(update=ConvolutionUpdateConfig(width=8), evaluations_per_segment=2, backprop_steps=1),
    data=MazeDataConfig(num_puzzles=20, size=7),
    supervision=DeepSupervisionConfig(batch_size=4, max_segments=3),
    train=TrainConfig(num_steps=1000, warmup_fraction=0, log_every=1, checkpoint_every=1),
)


def slow_save(weights: dict[str, torch.Tensor], into: Path) -> None:
    """Take as long over a checkpoint as over a step or two."""
    time.sleep(0.02)
    save_weights(weights, into)
    time.sleep(0.02)


def life(out: Path, told: Connection, until: int | None, checkpoint_every: int) -> None:
    """Train, or go on, and tell of every step; pause after some."""
    torch.set_num_threads(1)
    reasoning.run_loop = partial(reasoning.run_loop, save_model=slow_save)
    steps = []

    def tell(report: Report) -> None:
        steps.append(report.step)
        told.send(report.step)

    recipe = replace(TINY, train=replace(TINY.train, checkpoint_every=checkpoint_every))
    before = None if until is None else until - 1  # it is asked in a step, before that is told
    resume = any(out.glob("step-*"))
    reasoning.train_reasoner(recipe, out, resume=resume, callbacks=[tell], should_pause=lambda: steps[-1:] == [before])


def tensors(out: Path) -> dict[str, Any]:
    """Checksums of all tensors in the newest checkpoint: weights, training state and what is a rank's own."""
    checkpoint = find_checkpoint(out)
    verify(checkpoint)
    sums = json.loads((checkpoint / "checksums.json").read_text())["files"]
    return {name: value for name, value in sums.items() if name.endswith((".safetensors", ".distcp"))}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and forkserver")
def test_a_run_that_is_killed_twenty_times_is_bitwise_the_uninterrupted_one(tmp_path) -> None:
    """At random moments, in the midst of writing too; what is found after each is whole."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["attractor.cli", __name__])

    def begin(name: str, until: int | None = None, checkpoint_every: int = 1) -> tuple[Any, Connection]:
        hear, told = processes.Pipe(duplex=False)
        process = processes.Process(target=life, args=(tmp_path / name, told, until, checkpoint_every))
        process.start()
        told.close()
        return process, hear

    draw, while_writing, step = random.Random(0), 0, 0
    for _ in range(KILLS):
        process, hear = begin("killed")
        for _ in range(draw.randint(1, 3)):
            step = hear.recv()
        time.sleep(draw.uniform(0, 0.06))
        process.kill()
        process.join()
        with suppress(EOFError):
            while True:
                step = hear.recv()
        while_writing += any((tmp_path / "killed").glob(".part-*"))
        if any((tmp_path / "killed").glob("step-*")):
            verify(find_checkpoint(tmp_path / "killed"))
    assert while_writing > KILLS / 4
    for name, checkpoint_every in (("killed", 1), ("whole", 0)):
        process, hear = begin(name, step + 3, checkpoint_every)
        process.join()
        assert process.exitcode == 0
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")
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
    changed += ["data.size=7", f"train.num_steps={num_steps}", "train.log_every=1", "train.checkpoint_every=2"]
    return ["train", "maze", "--out", str(out), *more, "--set", *changed, *settings]


def flip(file: Path) -> None:
    """Change one bit, late in the file: beyond the first MiB of a shard."""
    data = bytearray(file.read_bytes())
    data[len(data) * 9 // 10] ^= 1
    file.write_bytes(data)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one sentence that a command says instead of working."""
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("attractor: ")
    assert err.count("\n") == 1
    return err


def test_a_flipped_bit_in_any_file_of_a_checkpoint_stops_the_command_that_resumes(tmp_path, capsys) -> None:
    """Which file, which checkpoint is left, and nothing is written."""
    out = tmp_path / "run"
    assert main(command(out)) == 0
    checkpoint = find_checkpoint(out)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert len(files) == 7
    for file in files:
        whole, log = file.read_bytes(), (out / "metrics.jsonl").stat().st_mtime_ns
        flip(file)
        sentence = refused(command(out, "--resume", num_steps=6), capsys)
        assert str(file) in sentence
        assert (out / "metrics.jsonl").stat().st_mtime_ns == log
        file.write_bytes(whole)
    assert main(command(out, "--resume", num_steps=6)) == 0


def test_a_flipped_bit_in_shards_and_puzzles_stops_the_command_that_trains(tmp_path, capsys) -> None:
    """Which file; before anything is made of it."""
    (tmp_path / "text.txt").write_text("the sea was calm and a small boat went out past old walls. " * 20_000)
    text = ["data", "prepare", str(tmp_path / "text.txt"), "--out", str(tmp_path / "tokens"), "--vocab-size", "260"]
    assert main([*text, "--val-fraction", "0"]) == 0
    boards = ["data", "sudoku", "--out", str(tmp_path / "boards"), "--size", "4", "--num", "20", "--num-test", "5"]
    assert main(boards) == 0
    for folder, name in (("tokens", "language/tiny"), ("boards", "sudoku/6x6")):
        files = [*(tmp_path / folder).glob("train*")]
        assert files
        for file in files:
            whole = file.read_bytes()
            flip(file)
            arguments = ["train", name, "--data", str(tmp_path / folder), "--out", str(tmp_path / "run")]
            assert str(file) in refused([*arguments, "--set", "train.num_steps=1"], capsys)
            assert not (tmp_path / "run").exists()
            file.write_bytes(whole)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MB."""
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
@pytest.mark.parametrize("track", ["none", "tensorboard"])
def test_a_disk_that_fills_up_ends_a_run_in_a_sentence(left: int, track: str, small_disk, capsys) -> None:
    """Be it the log, the curves or a checkpoint that finds no room; with room again, the run goes on from what is whole."""
    out, ballast = small_disk / "run", small_disk / "ballast"
    arguments = ["--track", track]
    assert main(command(out, *arguments)) == 0
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast.write_bytes(bytes(free - left))
    long = {"num_steps": 2000, "settings": ("train.max_checkpoints=100",)}
    sentence = refused(command(out, *arguments, "--resume", **long), capsys)
    assert "make room and resume" in sentence
    verify(find_checkpoint(out))
    assert not list(out.glob(".part-*"))
    ballast.unlink()
    before = int(find_checkpoint(out).name.removeprefix("step-"))
    assert main(command(out, *arguments, "--resume", num_steps=before + 2)) == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, before + 3))
