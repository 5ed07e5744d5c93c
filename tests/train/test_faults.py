"""Runs that are killed, and disks that fill up: whatever happens, what is there is whole, and a resumed run is the same run."""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from attractor.cli import main, reasoning
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import ConvolutionUpdateConfig
from attractor.recipes import MazeDataConfig, PuzzleRecipe
from attractor.train import DeepSupervisionConfig, Report, TrainConfig, find_checkpoint
from attractor.train.checkpoint import save_weights, verify

KILLS = 20
TINY = PuzzleRecipe(
    model=AttractorReasonerConfig(update=ConvolutionUpdateConfig(width=8), segment=2, tracked=1),
    data=MazeDataConfig(num_mazes=20, size=7),
    supervision=DeepSupervisionConfig(batch_size=4, max_segments=3),
    train=TrainConfig(num_steps=4 * KILLS, log_every=1, checkpoint_every=1),
)


def slow_save(weights: dict[str, torch.Tensor], into: Path) -> None:
    """Take as long over a checkpoint as over a step or two."""
    time.sleep(0.02)
    save_weights(weights, into)
    time.sleep(0.02)


def life(out: Path, told: Connection) -> None:
    """Train, or go on, and tell of every step."""
    torch.set_num_threads(1)
    reasoning.run_loop = partial(reasoning.run_loop, save_model=slow_save)
    resume = any(out.glob("step-*"))
    tell: Callable[[Report], None] = lambda report: told.send(report.step)  # noqa: E731
    reasoning.train_reasoner(TINY, out, resume=resume, callbacks=[tell])


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
    processes.set_forkserver_preload([__name__, "attractor.cli.reasoning"])

    def begin(name: str) -> tuple[Any, Connection]:
        hear, told = processes.Pipe(duplex=False)
        process = processes.Process(target=life, args=(tmp_path / name, told))
        process.start()
        told.close()
        return process, hear

    draw, while_writing, ages = random.Random(0), 0, []
    for _ in range(KILLS):
        process, hear = begin("killed")
        for _ in range(draw.randint(1, 3)):
            step = hear.recv()
        time.sleep(draw.uniform(0, 0.08))
        process.kill()
        process.join()
        ages.append(step)
        while_writing += any((tmp_path / "killed").glob(".part-*"))
        if any((tmp_path / "killed").glob("step-*")):
            verify(find_checkpoint(tmp_path / "killed"))
    assert ages[-1] < TINY.train.num_steps  # the last was killed as well
    assert while_writing > KILLS / 4
    for name in ("killed", "whole"):
        process, hear = begin(name)
        process.join()
        assert process.exitcode == 0
    assert tensors(tmp_path / "killed") == tensors(tmp_path / "whole")
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 4 * KILLS + 1))
