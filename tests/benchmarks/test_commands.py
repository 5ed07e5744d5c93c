"""Every benchmark explains itself, and writes into ``results/`` only if it is told to."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro
from benchmarks.command import with_out

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    f.stem for f in (ROOT / "benchmarks").glob("*.py") if f.stem != "command" and "__main__" in f.read_text()
)
# Of several commands, each with --out.
SEVERAL = ("depth", "gpu", "language", "mazes", "memory", "scale", "scaling", "smollm2", "sudoku")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_the_benchmark_and_does_no_work(name: str, tmp_path, monkeypatch, capsys) -> None:
    """In an empty folder, which stays empty."""
    if name in ("solvers", "margin"):
        pytest.importorskip("torchdeq")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delitem(sys.modules, f"benchmarks.{name}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    output = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"usage: python -m benchmarks.{name}" in output
    assert "--out PATH" in output or name in SEVERAL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", [Path("results/here"), Path("results/here/one.json")])
def test_results_stay_out_of_the_committed_ones(out: Path, tmp_path, monkeypatch) -> None:
    """By default they go to runs/benchmarks; --out names the folder, of several files or of one."""
    monkeypatch.chdir(tmp_path)
    module = SimpleNamespace(OUT=out)

    def measure(repeats: int = 1) -> None:
        """Measure.

        Args:
            repeats: Of the measurement.
        """
        (module.OUT if module.OUT.suffix else module.OUT / "one.json").write_text(str(repeats))

    run = with_out(measure, module)
    tyro.cli(run, args=["--repeats", "2"])
    assert (tmp_path / "runs/benchmarks/here/one.json").read_text() == "2"
    assert not (tmp_path / "results").exists()
    tyro.cli(run, args=["--out", "results/here"])
    assert (tmp_path / "results/here/one.json").read_text() == "1"
