"""``attractor import``: a published puzzle model is evaluated by its authors' protocol."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import attractor
from attractor.cli.main import main
from attractor.config import to_dict
from attractor.data import sudoku
from attractor.files.manifest import write_checksums
from attractor.interop import export_reasoner, import_reasoner
from attractor.models.reasoning import EqRConfig, TRMConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig

NETWORK = GridNetworkConfig(width=8, num_layers=1, hidden=256, mixing="attention", num_heads=2, grid_positions=False)
SETTINGS = {
    "num_symbols": 6,  # padding, blank, 1 to 4
    "num_classes": 6,
    "evaluations_per_segment": 2,
    "update": TRMUpdateConfig(network=NETWORK, num_latent=2),
}


def published(folder: Path, config=TRMConfig(**SETTINGS), **changes) -> Path:  # noqa: B008
    """A checkpoint of random weights for 4 × 4 Sudokus in the published format."""
    torch.manual_seed(0)
    model = config.build()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    export_reasoner(model, folder, num_cells=16)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"halt_max_steps": 3} | changes))
    return folder


@torch.no_grad()
def test_an_imported_model_is_evaluated_as_published(tmp_path: Path, capsys) -> None:
    """Three segments by default. Symbols are shifted by one, because the published ones begin with padding."""
    assert main(["import", str(published(tmp_path / "trm")), str(tmp_path / "out")]) == 0
    assert "TRM for puzzles of kind sudoku, 4 × 4" in capsys.readouterr().out
    data = sudoku.generate(20, size=4, seed=0, clues=8)
    figures = attractor.evaluate(tmp_path / "out", data)["results"]
    assert figures["depths"] == [6]
    assert figures["evaluations"] == [[6.0]]
    theirs, questions = import_reasoner(tmp_path / "trm"), torch.from_numpy(data.questions.copy()).long()
    logits = theirs(questions + 1, depth=6).logits
    ours = attractor.load(tmp_path / "out").model(questions, depth=6).logits
    assert torch.allclose(logits.roll(-1, dims=-1), ours, atol=1e-5)
    right = (logits.argmax(dim=-1) - 1 == torch.from_numpy(data.answers.copy())).flatten(1).all(dim=1)
    assert figures["exact_by_residual"] == [[float(right.float().mean())]]


def test_the_published_noise_and_selection_are_kept(tmp_path: Path) -> None:
    """EqR adds its noise at test time, and chooses by the change of the logits."""
    folder = published(tmp_path / "eqr", EqRConfig(**SETTINGS, noise=0.02))
    assert main(["import", str(folder), str(tmp_path / "out")]) == 0
    loaded = attractor.load(tmp_path / "out")
    assert to_dict(loaded.model.config)["noise"] == 0.02
    data = sudoku.generate(4, size=4, seed=0, clues=8)
    figures = attractor.evaluate(loaded, data, breadths=(1, 3))["results"]
    assert figures["selections"] == ["logit-window"]
    assert figures["evaluations"] == [[6.0], [18.0]]
    for key in ("exact_by_logit_window", "interval_by_logit_window", "any_exact"):
        assert len(figures[key]) == 2
    assert {"residual_auroc", "logit_window_auroc", "halting_logit_auroc"} <= figures.keys()


def test_noise_restarts_of_trm_need_no_training(tmp_path: Path, capsys) -> None:
    """From the command line, chosen by the halting logit (PTRM); the table has every selection, and the interval."""
    assert main(["import", str(published(tmp_path / "trm")), str(tmp_path / "out")]) == 0
    puzzles = str(tmp_path / "data")
    assert (
        main(["data", "sudoku", "--out", puzzles, "--size", "4", "--clues", "8", "--num", "8", "--num-test", "8"]) == 0
    )
    restarts = ["evaluate", str(tmp_path / "out"), "--data", puzzles, "--breadths", "1", "3"]
    assert main([*restarts, "--noise", "0.3", "--selections", "halting-logit", "top-2-majority"]) == 0
    out = capsys.readouterr().out
    for text in ("halting-logit", "top-2-majority", "any restart", "95 % interval", "18 evaluations per puzzle"):
        assert text in out
    assert main(restarts) == 2
    assert "or add noise" in capsys.readouterr().err
    assert main([*restarts, "--noise", "0.3", "--halting", "logit"]) == 0
    assert main([*restarts, "--noise", "0.3", "--selections", "luck"]) == 2
    assert "there is no selection 'luck'" in capsys.readouterr().err


def test_an_imported_model_never_answers_with_padding(tmp_path: Path) -> None:
    """Solving and drawing use the symbols of the puzzle only, whatever the network prefers."""
    folder = published(tmp_path / "trm")
    weights = load_file(folder / "model.safetensors")
    weights["inner.lm_head.weight"] = torch.zeros(6, 8)
    weights["inner.lm_head.weight"][0] = 1.0
    save_file(weights, folder / "model.safetensors")
    assert main(["import", str(folder), str(tmp_path / "out")]) == 0
    data, loaded = sudoku.generate(3, size=4, seed=0, clues=8), attractor.load(tmp_path / "out")
    state = torch.ones(1, 4, 4, 16)
    assert loaded.model.decode(state)[0].argmax(dim=-1).eq(5).all()  # padding
    assert all(solution.answer.max() <= 4 for solution in loaded.solve(data.questions, depth=2))
    gif = ["--depth", "2", "--gif", str(tmp_path / "board.gif")]
    assert main(["solve", str(tmp_path / "out"), sudoku.render(data.questions[0]), *gif]) == 1
    assert (tmp_path / "board.gif").is_file()


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        ({"depth": [4]}, "protocol has no setting 'depth'"),
        ({"depths": "all"}, "protocol.depths"),
        ({"depths": [4, 2]}, "depths 4 2: give rising whole numbers"),
        ([1], "protocol: expected named settings"),
    ],
)
def test_a_protocol_that_cannot_be_used_is_one_sentence(protocol, says: str, tmp_path: Path, capsys) -> None:
    """A received ``run.json`` is checked when it is read, before anything is evaluated."""
    assert main(["import", str(published(tmp_path / "trm")), str(tmp_path / "out")]) == 0
    file, sums = tmp_path / "out" / "run.json", tmp_path / "out" / "checksums.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"protocol": protocol}))
    sums.unlink()
    write_checksums(tmp_path / "out")
    assert main(["evaluate", str(tmp_path / "out"), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"seq_len": 20}, "20 cells of 5 symbols"), ({"bptt_through": 1, "lambda_": 0.9}, "'bptt_through' is not known")],
)
def test_a_checkpoint_that_cannot_be_used_is_one_sentence(changes, says: str, tmp_path: Path, capsys) -> None:
    """Exit code 2, and nothing is written."""
    assert main(["import", str(published(tmp_path / "in", **changes)), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
