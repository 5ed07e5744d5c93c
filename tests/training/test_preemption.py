"""Runs that stop early and are resumed."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from attractor import ConfigError
from attractor.experiment.loading import load_reasoner
from attractor.experiment.puzzles import train_reasoner
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import GatedConvolutionUpdateConfig
from attractor.recipes import MazeDataConfig, maze
from attractor.training import Preemption, TrainConfig

TINY = replace(
    maze(),
    model=AttractorReasonerConfig(
        update=GatedConvolutionUpdateConfig(width=8), evaluations_per_segment=2, backprop_steps=1
    ),
    data=MazeDataConfig(num_puzzles=20, size=7),
    train=TrainConfig(num_steps=9),
)


def test_a_run_in_parts_is_bitwise_the_uninterrupted_run(tmp_path) -> None:
    """Pauses change nothing, neither the weights nor the schedule."""
    train_reasoner(TINY, tmp_path / "uninterrupted")
    calls = iter(range(100))
    train_reasoner(TINY, tmp_path / "parts", should_pause=lambda: next(calls) == 3)
    for _ in range(2):
        train_reasoner(TINY, tmp_path / "parts", resume=True, should_pause=lambda: next(calls) % 3 == 0)
    train_reasoner(TINY, tmp_path / "parts", resume=True)
    a, b = (load_reasoner(tmp_path / name).model.state_dict() for name in ("uninterrupted", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_signals_request_a_pause_and_the_old_handlers_are_restored(which: signal.Signals) -> None:
    """The first signal is a request. After the block, signals have their old handlers."""
    before = signal.getsignal(which)
    with Preemption() as should_pause:
        assert not should_pause()
        os.kill(os.getpid(), which)
        assert should_pause()
    assert signal.getsignal(which) is before


def test_a_second_interrupt_ends_the_run_at_once() -> None:
    """It raises KeyboardInterrupt."""
    with Preemption():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_time_limit_requests_a_pause() -> None:
    """The time is counted from the first call, which follows the first step."""
    assert Preemption(seconds=0)()
    should_pause = Preemption(seconds=60)
    assert not should_pause()
    assert not should_pause.requested


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_invalid_times_are_refused(seconds: float) -> None:
    """The message says which are valid."""
    with pytest.raises(ConfigError, match="from 0 up"):
        Preemption(seconds=seconds)


def test_every_part_makes_a_step_and_the_last_is_not_paused(tmp_path) -> None:
    """A run in parts ends, however short the time limit is."""
    parts = 0
    for resume in (False, *[True] * 8):
        should_pause = Preemption(seconds=0)
        train_reasoner(TINY, tmp_path, resume=resume, should_pause=should_pause)
        parts += 1
        if not should_pause.requested:
            break
    assert parts == 9
