"""The measurements for a GPU run from end to end on a processor, at a small size."""

import json
from functools import partial

import pytest

from attractor.nn import compile_blocks
from benchmarks import gpu

TINY = ("model.vocab_size=128", "text.batch_size=1", "text.length=32", "model.hidden_size=64", "train.accumulate=2")


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """On a processor, into a folder of its own, and with graphs that are made and not compiled."""
    monkeypatch.setattr(gpu, "ON_GPU", False)
    monkeypatch.setattr(gpu, "OUT", tmp_path)
    monkeypatch.setattr(gpu, "peak_flops", lambda device, dtype: 1e12)
    monkeypatch.setattr(
        "attractor.experiment.cost.step_benchmark.compile_blocks", partial(compile_blocks, backend="eager")
    )
    return tmp_path


def test_language_counts_the_evaluations_that_were_made(small) -> None:
    """Work, rate and share of the peak are one another's, for what a solve really took; compiling happens in warming up alone."""
    gpu.language("language/tiny", TINY, repeats=2)
    result = json.loads((small / "cpu-language.json").read_text())
    ours, plain = (result["rows"][f"{name}, compiled"] for name in ("attractor", "Transformer"))
    assert 2 <= ours["evaluations"] <= 16
    assert plain["evaluations"] == 1
    assert ours["mfu"] == pytest.approx(ours["tokens_per_second"] * ours["gflop_per_unit"] * 1e9 / 1e12)
    assert ours["tokens_per_second"] == pytest.approx(64 * ours["steps_per_second"])
    assert ours["graphs"] > 0
    assert result["goals"]["graphs compiled after warming up"]["met"]
    assert "peak_gb" in result["rows"]["attractor, eager"]


def test_memory_is_measured_at_forced_evaluations() -> None:
    """Training keeps what it keeps at 8 evaluations at 32 too."""
    result = gpu.memory("language/tiny", TINY, evaluations=(8, 32))
    assert [row["evaluations"] for row in result["rows"].values()] == [8, 32]
    assert all(goal["met"] for goal in result["goals"].values())


def test_reasoners_are_measured_compiled_and_compile_no_more() -> None:
    """The families that are built in different ways."""
    families = ("attractor", "trm", "hrm", "transformer")
    result = gpu.reasoners("sudoku/6x6", families, ("supervision.batch_size=4",), repeats=1)
    assert tuple(result["rows"]) == families
    assert all(row["puzzles_per_second"] > 0 for row in result["rows"].values())
    assert result["goals"]["graphs compiled after warming up"]["met"]


def test_the_largest_scale_that_fits_is_run(small, monkeypatch) -> None:
    """By FLOPs, the device's peak and its memory; and it pauses after the minutes."""
    called = []
    monkeypatch.setattr(gpu.paper_benchmark, "OUT", small)
    monkeypatch.setattr(gpu.paper_benchmark, "paper", lambda items, **settings: called.append(settings))
    monkeypatch.setattr(gpu, "free_memory", lambda device: 100e9)
    for peak, minutes, scale in ((1e15, 10, "small"), (1e15, 60, "60m"), (1e15, 6000, "370m"), (1e8, 10, "tiny")):
        monkeypatch.setattr(gpu, "peak_flops", lambda device, dtype, peak=peak: peak)
        gpu.paper(minutes=minutes)
        assert called.pop() == {"scale": scale, "seeds": (0,), "data": None, "minutes": minutes}
    monkeypatch.setattr(gpu, "peak_flops", lambda device, dtype: 1e15)
    monkeypatch.setattr(gpu, "free_memory", lambda device: 1e9)
    assert gpu.largest_scale(1e9) == "tiny"
