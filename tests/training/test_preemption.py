"""Leaving a run and going on with it."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from attractor import ConfigError
from attractor.experiment.loading import load_reasoner
from attractor.experiment.puzzles import train_reasoner
from attractor.models.reasoning import AttractorReasonerConfig
from attractor.nn import ConvolutionUpdateConfig
from attractor.recipes import MazeDataConfig, maze
from attractor.training import Preemption, TrainConfig

TINY = replace(
    maze(),
    model=AttractorReasonerConfig(update=ConvolutionUpdateConfig(width=8), evaluations_per_segment=2, backprop_steps=1),
    data=MazeDataConfig(num_puzzles=20, size=7),
    train=TrainConfig(num_steps=9),
)


def test_a_run_in_pieces_is_bitwise_the_run_in_one(tmp_path) -> None:
    """Pauses after any step change nothing, the schedule included."""
    train_reasoner(TINY, tmp_path / "whole")
    calls = iter(range(100))
    train_reasoner(TINY, tmp_path / "cut", should_pause=lambda: next(calls) == 3)
    for _ in range(2):
        train_reasoner(TINY, tmp_path / "cut", resume=True, should_pause=lambda: next(calls) % 3 == 0)
    train_reasoner(TINY, tmp_path / "cut", resume=True)
    a, b = (load_reasoner(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_for_a_pause_and_the_old_handlers_come_back(which: signal.Signals) -> None:
    """The first is a request; afterwards signals mean what they meant before."""
    before = signal.getsignal(which)
    with Preemption() as should_pause:
        assert not should_pause()
        os.kill(os.getpid(), which)
        assert should_pause()
    assert signal.getsignal(which) is before


def test_a_second_interrupt_is_obeyed_at_once() -> None:
    with Preemption():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_time_asks_for_a_pause() -> None:
    """Counted from the first question, which comes after a step; never before nothing."""
    assert Preemption(seconds=0)()
    should_pause = Preemption(seconds=60)
    assert not should_pause()
    assert not should_pause.taken


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_times_that_cannot_be_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="from 0 up"):
        Preemption(seconds=seconds)


def test_every_piece_makes_a_step_and_the_last_is_no_pause(tmp_path) -> None:
    """However short the time, a chain of pieces ends; a run that is done was not paused."""
    pieces = 0
    for resume in (False, *[True] * 8):
        should_pause = Preemption(seconds=0)
        train_reasoner(TINY, tmp_path, resume=resume, should_pause=should_pause)
        pieces += 1
        if not should_pause.taken:
            break
    assert pieces == 9
