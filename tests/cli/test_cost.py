"""``attractor cost`` prints an estimate and a measurement, and writes them as JSON."""

import json
import re

import pytest

from attractor import recipes
from attractor.cli import main
from attractor.experiment.cost.estimate import estimate_cost

TINY = ["--set", "model.vocab_size=512", "text.batch_size=2", "text.length=128"]


@pytest.mark.parametrize(
    ("arguments", "unit"),
    [
        (["language/tiny", *TINY], "tokens/s"),
        (["sudoku/6x6-trm", "--set", "supervision.batch_size=16"], "segments/s"),
    ],
)
def test_a_recipe_is_estimated_and_measured(arguments: list[str], unit: str, tmp_path, capsys) -> None:
    """The output has parameters, operations, memory and time in 80 columns; the JSON file has the same numbers."""
    file = tmp_path / "cost.json"
    assert main(["cost", *arguments, "--out", str(file)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("embedding", "FLOP", "peak", "this machine, measured", "H100", unit))
    assert max(map(len, out.splitlines())) <= 80
    figures = json.loads(file.read_text())
    assert figures["measured"]["estimate"] == pytest.approx(figures["measured"]["peak"], rel=0.25)
    assert figures["measured"]["rate"] > 0
    assert figures["memory"]["peak"] > figures["memory"]["weights"]


def test_a_large_recipe_is_estimated_on_any_machine(capsys) -> None:
    """The output says why it was not measured."""
    assert main(["cost", "language/770m", "--world-size", "8", "--strategy", "fsdp"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Not measured: even .* batch of 1 ", out)
    assert "8 × H100" in out
    assert "fsdp" in out


def test_names_of_puzzles_are_part_of_the_estimate() -> None:
    """Their embeddings, gradients and average, and no moments."""
    few, many = (
        estimate_cost(recipes.override(recipes.get("arc"), {"model.num_names": num})).memory for num in (1, 800_001)
    )
    table = 4 * 800_000 * 512
    assert many.weights - few.weights == many.ema_weights - few.ema_weights == many.gradients - few.gradients == table
    assert many.optimizer == few.optimizer


def test_a_smaller_batch_is_measured_when_the_recipe_s_does_not_fit(monkeypatch, capsys) -> None:
    """The output says so."""
    monkeypatch.setattr("attractor.experiment.cost.step_benchmark.free_memory", lambda device: 40_000_000)
    assert main(["cost", "sudoku/6x6"]) == 0
    assert "smaller than the recipe's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["language/tyny"], "did you mean 'language/tiny'"),
        (["language/retrofit"], "from a checkpoint"),
        (["language/tiny", "--set", "model.widht=3"], "unknown setting"),
        (["language/tiny", "--world-size", "3"], "divided among 3"),
        (["language/tiny", "--strategy", "fsdp"], "needs several processes"),
        (["language/tiny", "--evaluations", "0"], "from 1 up"),
    ],
)
def test_an_error_is_one_line(arguments: list[str], why: str, capsys) -> None:
    """The exit code is 2, and the line names the problem."""
    assert main(["cost", *arguments, "--no-measure"]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
