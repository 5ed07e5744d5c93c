"""TRM's official weights: their logits over three segments, the first to 1e-4; unknown settings and tensors are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attractor.errors import CheckpointError
from attractor.interop.trm_checkpoint import import_trm

FIXTURE = Path(__file__).parents[3] / "shared" / "fixtures" / "trm_tiny"
pytestmark = pytest.mark.skipif(not FIXTURE.is_dir(), reason="the shared fixtures are missing")
KINDS = ("mixer", "attention")


def copy(kind: str, folder: Path, config=lambda c: c, weights=lambda w: w) -> Path:
    """A checkpoint folder with changed settings and tensors."""
    stored = config(json.loads((FIXTURE / f"{kind}.config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(stored))
    save_file(weights(load_file(FIXTURE / f"{kind}.weights.safetensors")), folder / "model.safetensors")
    return folder


def refused(folder: Path) -> str:
    """Import it, and return the error message."""
    with pytest.raises(CheckpointError) as caught:
        import_trm(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_authors(kind: str, tmp_path: Path) -> None:
    """Answers and halting after each of three segments; each continues from the state before."""
    model, expected = import_trm(copy(kind, tmp_path)), load_file(FIXTURE / f"{kind}.expected.safetensors")
    questions, state = expected["inputs"].view(3, 4, 4), None
    # In float64, where the result does not depend on the processor. The stored float32 logits of random weights are
    # themselves 4e-4 away from it after three segments of the mixer, and 5e-5 after two.
    model = model.double()
    for segment, bound in ((1, 1e-4), (2, 1e-4), (3, 5e-4)):
        output = model(questions, state)
        state = output.solution.value
        assert (output.logits.flatten(1, 2) - expected[f"logits_segment_{segment}"]).abs().max() < bound
        assert (output.halt - expected[f"q_halt_segment_{segment}"]).abs().max() < bound
    assert (expected["logits_segment_3"] - expected["logits_segment_2"]).abs().max() > 0.05, (
        "the segments must differ, or nothing is tested"
    )


def test_tensor_names_may_have_the_prefixes_of_wrappers(tmp_path: Path) -> None:
    """Compilation and the loss add a prefix to every name; here in a pickle."""
    wanted = import_trm(copy("mixer", tmp_path)).state_dict()
    (tmp_path / "model.safetensors").unlink()
    weights = load_file(FIXTURE / "mixer.weights.safetensors")
    torch.save({f"_orig_mod.model.{k}": v for k, v in weights.items()}, tmp_path / "pytorch_model.bin")
    found = import_trm(tmp_path).state_dict()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize(
    ("kind", "name", "value", "sentence"),
    [
        ("mixer", "puzzle_emb_ndim", 32, "puzzle_emb_ndim=32 is not implemented"),
        ("mixer", "puzzle_emb_len", 16, "puzzle_emb_len=16 is not implemented"),
        ("mixer", "pos_encodings", "learned", "'learned' is not implemented"),
        ("attention", "pos_encodings", "none", "'none' is not implemented"),
        ("mixer", "rms_norm_eps", 1e-6, "rms_norm_eps"),
        ("mixer", "mlp_t", 1, "mlp_t=1 is not implemented"),
        ("mixer", "L_layers", 0, "make no model"),
        ("mixer", "hidden_size", "wide", "make no model"),
        ("mixer", "dropout", 0.1, "'dropout' is not known"),
        ("mixer", "L_layers", 3, "'L_level.layers.2.mlp_t.gate_up_proj.weight' is missing"),
        ("mixer", "seq_len", 25, "has shape (512, 16), not (512, 25)"),
    ],
)
def test_unsupported_settings_are_refused(kind: str, name: str, value, sentence: str, tmp_path: Path) -> None:
    """In one sentence that names the setting, or the tensor that does not fit it."""
    assert sentence in refused(copy(kind, tmp_path, config=lambda c: c | {name: value}))


@pytest.mark.parametrize("name", ["seq_len", "L_cycles", "pos_encodings"])
def test_a_missing_setting_is_named(name: str, tmp_path: Path) -> None:
    folder = copy("attention", tmp_path, config=lambda c: {k: v for k, v in c.items() if k != name})
    assert f"{name!r} is missing" in refused(folder)


def test_tensors_that_are_unknown_or_missing_are_named(tmp_path: Path) -> None:
    folder = copy("mixer", tmp_path, weights=lambda w: w | {"inner.q_head.scale": torch.ones(2)})
    assert "'q_head.scale' is not known" in refused(folder)
    copy("mixer", tmp_path, weights=lambda w: {k: v for k, v in w.items() if k != "inner.L_init"})
    assert "'L_init' is missing" in refused(folder)
