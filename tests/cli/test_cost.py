"""``attractor cost``."""

import json
import re

import pytest

from attractor.cli import main

TINY = ["--set", "model.vocab_size=512", "text.batch_size=2", "text.length=128"]


@pytest.mark.parametrize(
    ("arguments", "unit"), [(["language/tiny", *TINY], "tokens/s"), (["sudoku/6x6-trm"], "segments/s")]
)
def test_a_recipe_is_reckoned_and_measured(arguments: list[str], unit: str, tmp_path, capsys) -> None:
    """Weights, operations, memory beside a measured peak, and time, in 80 columns; the figures as JSON too."""
    file = tmp_path / "cost.json"
    assert main(["cost", *arguments, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("embedding", "FLOP", "at the peak", "here, measured", "H100", unit))
    assert max(len(line) for line in out.splitlines() if line and line[0] in "┏┃┡│└") <= 80
    figures = json.loads(file.read_text())
    assert figures["measured"]["estimate"] == pytest.approx(figures["measured"]["peak"], rel=0.25)
    assert figures["measured"]["rate"] > 0
    assert figures["memory"]["peak"] > figures["memory"]["weights"]


def test_a_large_recipe_is_reckoned_on_any_machine(capsys) -> None:
    """And what was not measured is said, with the reason."""
    assert main(["cost", "language/770m", "--world-size", "8", "--strategy", "fsdp"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Not measured: even .* batch of 1 ", out)
    assert "8 × H100" in out
    assert "fsdp" in out


def test_a_smaller_batch_is_measured_where_the_recipe_s_is_too_much(monkeypatch, capsys) -> None:
    """And that is said."""
    monkeypatch.setattr("attractor.experiment.cost.estimate.free_memory", lambda device: 40_000_000)
    assert main(["cost", "sudoku/6x6"]) == 0
    assert "smaller than the recipe's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["language/tyny"], "did you mean 'language/tiny'"),
        (["language/retrofit"], "from a checkpoint"),
        (["language/tiny", "--set", "model.widht=3"], "unknown setting"),
        (["language/tiny", "--world-size", "3"], "divided among 3"),
        (["language/tiny", "--strategy", "fsdp"], "shares with nobody"),
        (["language/tiny", "--evaluations", "0"], "from 1 up"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments: list[str], why: str, capsys) -> None:
    assert main(["cost", *arguments, "--no-measure"]) == 2
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
