"""``attractor import`` reads checkpoints in the layouts that the authors' code writes."""

import json
import random
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from attractor.cli.main import main
from attractor.errors import CheckpointError
from attractor.interop import export_reasoner, import_reasoner
from attractor.models.reasoning import HRM, TRM, TRMDEQ, EqR, EqRConfig, HRMConfig, TRMConfig, TRMDEQConfig
from attractor.nn import GridNetworkConfig, TRMUpdateConfig

NETWORK = GridNetworkConfig(width=8, num_layers=1, hidden=256, mixing="attention", num_heads=2, grid_positions=False)
MIXER = replace(NETWORK, mixing="mixer", num_cells=32, cell_hidden=256)
COUNTS = {"num_symbols": 6, "num_classes": 6, "evaluations_per_segment": 2}  # padding, blank, 1 to 4
NAMED = COUNTS | {"num_name_tokens": 16, "name_width": 8}  # a vector, and 15 tokens of zeros
CONFIGS = {
    "trm": TRMConfig(**NAMED, update=TRMUpdateConfig(network=NETWORK, num_latent=2)),
    "trm-mixer": TRMConfig(**NAMED, update=TRMUpdateConfig(network=MIXER, num_latent=2)),
    "hrm": HRMConfig(**COUNTS, num_name_tokens=1, network=NETWORK, num_latent=2),
    "eqr": EqRConfig(**COUNTS, update=TRMUpdateConfig(network=NETWORK, num_latent=2)),
    "trm-deq": TRMDEQConfig(**NAMED, network=NETWORK, num_latent=2),
}
FAMILIES = {"trm": TRM, "trm-mixer": TRM, "hrm": HRM, "eqr": EqR, "trm-deq": TRMDEQ}
MODULES = {
    "trm": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
    "hrm": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1",
    "eqr": "eqr@EqRModel",
}
FROM_DATA = ("seq_len", "vocab_size", "num_puzzle_identifiers")  # that the authors' code does not store


@dataclass
class Carry:
    """Stands for the class of the authors' code in a pickle."""

    z_H: torch.Tensor


def write(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Write random weights of a tiny model as the authors' code does; return those that they evaluate, by our names."""
    torch.manual_seed(0)
    model = CONFIGS[name].build()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    export_reasoner(model, folder / "plain", num_cells=16)
    settings = json.loads((folder / "plain" / "config.json").read_text()) | {"halt_max_steps": 3}
    weights = load_file(folder / "plain" / "model.safetensors")
    # The average of parameters; the vectors of names and the initial state are buffers there, and not averaged.
    average = {k: v for k, v in weights.items() if not k.endswith(("_init", "puzzle_emb.weights"))}
    raw = weights | {k: v + 1 for k, v in average.items()}
    if name == "trm-deq":
        average = {f"module.model.{key}": value for key, value in average.items()}
        stored = {"step": 1, "model_state": {f"model.{key}": value for key, value in raw.items()}}
        stored |= {"ema_state": average, "model_config": settings | {"batch_size": 4, "mlp_t": False}}
        torch.save(stored, folder / "last.pt")
        return model.state_dict()
    settings = {k: v for k, v in settings.items() if k not in FROM_DATA and not k.startswith("puzzle_emb_len")}
    arch = settings | {"name": MODULES[name.removesuffix("-mixer")], "loss": {"name": "losses@ACTLossHead"}}
    if name == "eqr":
        # Its module can be imported here, so that only the reader prevents its code from running.
        monkeypatch.setattr(sys.modules[Carry.__module__], "Carry", Carry)
        stored = {
            "model": {f"_orig_mod.model.{key}": value for key, value in raw.items()},
            "ema": {"mu": 0.999, "shadow": {f"model._orig_mod.{key}": value for key, value in average.items()}},
            "config": {"arch": arch | {"short_name": "EqR", "board_height": 4, "board_width": 4}, "epochs": 1},
            "numpy": np.random.get_state(),
            "python": random.getstate(),
            "carry": Carry(torch.ones(2)),
        }
        torch.save(stored, folder / "eqr.pth")
        return model.state_dict()
    (folder / "all_config.yaml").write_text(yaml.dump({"arch": arch, "epochs": 20000}))
    file = folder / ("checkpoint" if name == "hrm" else "step_65104")
    torch.save({f"_orig_mod.model.{key}": value for key, value in weights.items()}, file)
    (folder / "step_65104_all_preds.0").write_bytes(b"")
    return model.state_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_each_layout_is_imported(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """With averaged weights where they are stored; ``--seq-len`` is needed where nothing tells the number of cells."""
    wanted = write(name, tmp_path, monkeypatch)
    needs = name in ("trm", "hrm")
    model = import_reasoner(tmp_path, seq_len=16 if needs else None)
    assert type(model) is FAMILIES[name]
    found = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    command = ["import", str(tmp_path), str(tmp_path / "out"), *(["--seq-len", "16"] if needs else [])]
    assert main(command) == 0
    assert f"{type(model).__name__} for puzzles of kind sudoku, 4 × 4" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["protocol"]["depths"] == [6]


def test_the_number_of_symbols_tells_the_published_puzzles(tmp_path: Path, monkeypatch, capsys) -> None:
    """Six are the published mazes of 30 × 30. Other numbers need the option."""
    write("hrm", tmp_path, monkeypatch)
    assert main(["import", str(tmp_path / "checkpoint"), str(tmp_path / "out")]) == 0
    assert "HRM for puzzles of kind maze, 30 × 30" in capsys.readouterr().out
    weights = torch.load(tmp_path / "checkpoint")
    for key in ("_orig_mod.model.inner.embed_tokens.embedding_weight", "_orig_mod.model.inner.lm_head.weight"):
        weights[key] = torch.zeros(7, 8)
    torch.save(weights, tmp_path / "checkpoint")
    assert main(["import", str(tmp_path), str(tmp_path / "other")]) == 2
    assert "give --seq-len" in capsys.readouterr().err


def _two(folder: Path) -> None:
    (folder / "step_2").write_bytes((folder / "step_65104").read_bytes())


def _variant(folder: Path) -> None:
    text = (folder / "all_config.yaml").read_text()
    (folder / "all_config.yaml").write_text(
        text.replace("recursive_reasoning.trm@", "recursive_reasoning.trm_singlez@")
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / "step_65104").unlink(), "holds no checkpoint"),
        (_two, "several checkpoints (step_2, step_65104); give one"),
        (_variant, "arch.name='trm_singlez' is not implemented"),
        (
            lambda folder: (folder / "all_config.yaml").unlink(),
            "config.json: cannot be read as JSON (it does not exist)",
        ),
        (lambda folder: (folder / "all_config.yaml").write_text("arch: [1, 2"), "cannot be read as YAML"),
        (lambda folder: (folder / "all_config.yaml").write_text("arch: 1"), "holds no settings"),
        (lambda folder: (folder / "step_65104").write_bytes(b"PK"), "cannot be read as a checkpoint"),
        (lambda folder: torch.save({"model": {"a": 1}}, folder / "step_65104"), "holds no dictionary of tensors"),
        (lambda folder: torch.save([1], folder / "step_65104"), "holds no dictionary of tensors"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_sentence(change, says: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """Exit code 2, and nothing is written."""
    write("trm-mixer", tmp_path, monkeypatch)
    change(tmp_path)
    assert main(["import", str(tmp_path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_language_model_has_no_number_of_cells(tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert main(["import", str(tmp_path), str(tmp_path / "out"), "--seq-len", "81"]) == 2
    assert "seq_len is for puzzle models, leave it out" in capsys.readouterr().err


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch) -> None:
    """Neither a class that can be imported, nor a function of the operating system."""
    write("eqr", tmp_path, monkeypatch)
    monkeypatch.setattr(Carry, "__setstate__", lambda *args: pytest.fail("code of the checkpoint ran"), raising=False)
    import_reasoner(tmp_path)

    class Remove:
        def __reduce__(self):
            import os

            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": {}, "numpy": Remove()}, tmp_path / "eqr.pth")
    with pytest.raises(CheckpointError, match=re.escape("eqr.pth: cannot be read")):
        import_reasoner(tmp_path)
    assert not (tmp_path / "made").exists()
