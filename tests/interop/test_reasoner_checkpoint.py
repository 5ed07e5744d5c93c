"""Published checkpoints of TRM, EqR, HRM and TRM-DEQ: their logits over three segments; anything unknown is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attractor.errors import CheckpointError, ConfigError
from attractor.interop import export_reasoner, import_reasoner
from attractor.models.reasoning import HRM, TRM, TRMDEQ, EqR, TRMConfig

TINY = Path(__file__).parent / "reasoner_tiny"
SHARED = Path(__file__).parents[3] / "shared" / "fixtures"
FAMILIES = {"trm": TRM, "eqr": EqR, "hrm": HRM, "trm-deq": TRMDEQ}
AUTHORS = [
    *(("trm_tiny", kind) for kind in ("mixer", "attention")),
    *(("eqr_tiny", kind) for kind in ("mixer", "attention", "attention2d")),
    *(("official_puzzle_tiny", kind) for kind in ("mixer", "attention")),
]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared fixtures are missing")


def copy(name: str, folder: Path, config=lambda c: c, weights=lambda w: w) -> Path:
    """A checkpoint of our random numbers with changed settings and tensors."""
    stored = config(json.loads((TINY / name / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(stored))
    save_file(weights(load_file(TINY / name / "model.safetensors")), folder / "model.safetensors")
    return folder


def refused(folder: Path) -> str:
    """Import it, and return the error message."""
    with pytest.raises(CheckpointError) as caught:
        import_reasoner(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@needs_shared
@torch.no_grad()
@pytest.mark.parametrize(("family", "kind"), AUTHORS)
def test_logits_are_those_of_the_authors(family: str, kind: str, tmp_path: Path) -> None:
    """Answers and halting after each of three segments; each continues from the state before."""
    files, expected = SHARED / family, load_file(SHARED / family / f"{kind}.expected.safetensors")
    stored = json.loads((files / f"{kind}.config.json").read_text())
    if family == "official_puzzle_tiny":  # its latent was solved to 1e-6
        stored |= {"deq_max_iter": 400, "deq_tol": 1e-7}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    shutil.copy(files / f"{kind}.weights.safetensors", tmp_path / "model.safetensors")
    model = import_reasoner(tmp_path)
    questions, state = expected["inputs"].view(3, 4, 4), None
    if "z_H" in expected:
        state = torch.cat([expected["z_H"], expected["z_L"]], dim=-1).view(3, 4, 4, -1).double()
    # In float64, where the result does not depend on the processor. The stored float32 logits of random weights are
    # themselves 4e-4 away from it after three segments of the mixer, and 5e-5 after two.
    model = model.double()
    for segment, bound in ((1, 1e-4), (2, 1e-4), (3, 5e-4 if kind == "mixer" else 1e-4)):
        output = model(questions, state)
        state = output.solution.value
        assert (output.logits.flatten(1, 2) - expected[f"logits_segment_{segment}"]).abs().max() < bound
        assert (output.halt - expected[f"q_halt_segment_{segment}"]).abs().max() < bound
        if isinstance(model, TRMDEQ):
            z = expected[f"z_L_segment_{segment}"]  # of two name tokens and 16 cells, the last 18 of 20
            assert (state.flatten(1, 2)[:, 2:, z.shape[-1] :] - z).norm() < 1e-5 * z.norm()
    if not isinstance(model, TRMDEQ):  # whose first segment is near its answer
        assert (expected["logits_segment_3"] - expected["logits_segment_2"]).abs().max() > 0.05


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_stored_random_networks_compute_what_they_did(name: str, tmp_path: Path) -> None:
    """Its settings tell the family; logits are equal over three segments, and the export writes the same checkpoint."""
    model, expected = import_reasoner(TINY / name).double(), load_file(TINY / name / "expected.safetensors")
    assert type(model) is FAMILIES[name]
    state = expected["state"]
    for segment in (1, 2, 3):
        output = model(expected["inputs"], state)
        state = output.solution.value
        assert torch.allclose(output.logits.float(), expected[f"logits_{segment}"], atol=1e-5)
        assert torch.allclose(output.halt.float(), expected[f"halt_{segment}"], atol=1e-5)
    export_reasoner(model, tmp_path / "out", num_cells=4)
    found, before = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", TINY / name))
    assert found.keys() == before.keys()
    assert all(torch.equal(found[key], before[key].double()) for key in found)
    assert import_reasoner(tmp_path / "out").config == model.config


def test_a_model_that_the_format_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    """Hidden widths follow from the width in the published code."""
    with pytest.raises(ConfigError, match="hidden widths"):
        export_reasoner(TRMConfig().build(), tmp_path / "out", num_cells=81)
    assert not (tmp_path / "out").exists()


def test_tensor_names_may_have_the_prefixes_of_wrappers(tmp_path: Path) -> None:
    """Compilation and the loss add a prefix to every name; here in a pickle."""
    wanted = import_reasoner(copy("trm", tmp_path)).state_dict()
    (tmp_path / "model.safetensors").unlink()
    weights = load_file(TINY / "trm" / "model.safetensors")
    torch.save({f"_orig_mod.model.{k}": v for k, v in weights.items()}, tmp_path / "pytorch_model.bin")
    found = import_reasoner(tmp_path).state_dict()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_a_name_that_does_not_fill_its_tokens_ends_in_zeros(tmp_path: Path) -> None:
    """As in the official code."""
    name = "inner.puzzle_emb.weights"
    folder = copy(
        "trm-deq", tmp_path, lambda c: c | {"puzzle_emb_ndim": 20}, lambda w: w | {name: w[name][:, :20].clone()}
    )
    model = import_reasoner(folder)
    assert model.puzzle_emb.shape == (1, 20)
    found = model._embed(torch.zeros(1, 4, 4, dtype=torch.long))[0, :3].flatten()
    assert found[20:].eq(0).all()
    assert found[:20].ne(0).all()


@pytest.mark.parametrize(
    ("family", "name", "value", "sentence"),
    [
        ("trm", "puzzle_emb_ndim", 32, "'puzzle_emb.weights' is missing"),
        ("trm", "puzzle_emb_len", 16, "make no model (puzzle_emb_len=16 with puzzle_emb_ndim=0)"),
        ("hrm", "num_puzzle_identifiers", 960, "'puzzle_emb.weights' has shape (1, 8), not (960, 8)"),
        ("hrm", "H_layers", 2, "H_layers=2 is not implemented"),
        ("hrm", "mlp_t", True, "mlp_t=True is not implemented"),
        ("eqr", "lambda_", 1.5, "make no model"),
        ("trm-deq", "deq_inner", False, "deq_inner=False is not implemented"),
        ("trm-deq", "deq_tol", 0, "make no model"),
        ("trm", "pos_encodings", "learned", "'learned' is not implemented"),
        ("eqr", "pos_encodings", "none", "'none' is not implemented"),
        ("trm", "rms_norm_eps", 1e-6, "rms_norm_eps"),
        ("trm", "mlp_t", 1, "mlp_t=1 is not implemented"),
        ("trm", "L_layers", 0, "make no model"),
        ("trm", "hidden_size", "wide", "make no model"),
        ("trm", "dropout", 0.1, "'dropout' is not known"),
        ("trm", "L_layers", 3, "'L_level.layers.1.mlp_t.gate_up_proj.weight' is missing"),
        ("trm", "seq_len", 25, "has shape (512, 4), not (512, 25)"),
    ],
)
def test_unsupported_settings_are_refused(family: str, name: str, value, sentence: str, tmp_path: Path) -> None:
    """In one sentence that names the setting, or the tensor that does not fit it."""
    assert sentence in refused(copy(family, tmp_path, config=lambda c: c | {name: value}))


@pytest.mark.parametrize("name", ["hidden_size", "L_cycles", "pos_encodings"])
def test_a_missing_setting_is_named(name: str, tmp_path: Path) -> None:
    folder = copy("eqr", tmp_path, config=lambda c: {k: v for k, v in c.items() if k != name})
    assert f"{name!r} is missing" in refused(folder)


def test_tensors_that_are_unknown_or_missing_are_named(tmp_path: Path) -> None:
    folder = copy("trm", tmp_path, weights=lambda w: w | {"inner.q_head.scale": torch.ones(2)})
    assert "'q_head.scale' is not known" in refused(folder)
    copy("trm", tmp_path, weights=lambda w: {k: v for k, v in w.items() if k != "inner.L_init"})
    assert "'L_init' is missing" in refused(folder)
