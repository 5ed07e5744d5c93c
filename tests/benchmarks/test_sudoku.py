"""The comparison of puzzle models runs from end to end."""

import json

from benchmarks import sudoku


def test_a_run_is_trained_measured_and_written(tmp_path, monkeypatch) -> None:
    """With its accuracy at every depth."""
    monkeypatch.setattr(sudoku, "OUT", tmp_path)
    monkeypatch.setattr(sudoku, "NUM_TEST", 8)
    monkeypatch.setattr(sudoku, "NUM_WATCHED", 4)
    small = ("data.num_puzzles=16", "supervision.batch_size=8", "train.precision=fp32")
    sudoku.run(6, ("transformer",), (0,), num_steps=2, set=small, name="small")
    found = json.loads((tmp_path / "small-transformer-0.json").read_text())
    assert len(found["exact_by_residual"][0]) == len(sudoku.DEPTHS)
