"""Checkpoints of the paper's authors: their logits, to 2e-4, and nothing guessed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from attractor.errors import CheckpointError
from attractor.interop.official_checkpoint import FIXED_SETTINGS, IGNORED_SETTINGS, import_official

FIXTURE = Path(__file__).parent / "official_tiny"  # random weights, and the logits that the authors' code computes
BUDGETS = {
    "logits_proposal": {"depth": 0},
    "logits_one_evaluation": {"depth": 1},
    "logits_equilibrium": {"tolerance": 1e-6, "max_evaluations": 200},
}


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURE / "expected.safetensors")


@pytest.fixture(scope="module")
def weights():
    return torch.load(FIXTURE / "pytorch_model.bin", weights_only=True)


@pytest.fixture
def copy(tmp_path):
    """A checkpoint to change."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(FIXTURE / name, folder)
    return folder


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path) -> str:
    """Import it, and return the error message."""
    with pytest.raises(CheckpointError) as caught:
        import_official(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_logits_are_those_of_the_authors(expected, tmp_path) -> None:
    """Of the proposal, after one evaluation and at the equilibrium; saving and loading changes no bit."""
    model = import_official(FIXTURE)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, budget in BUDGETS.items():
        with torch.no_grad():
            logits = model(expected["input_ids"], **budget).logits
            assert (logits - expected[name]).abs().max() < 2e-4
            assert torch.equal(again(expected["input_ids"], **budget).logits, logits)
    gaps = [(expected["logits_equilibrium"] - expected[name]).abs().max() for name in list(BUDGETS)[:2]]
    assert min(gaps) > 0.05, "the three must differ, or nothing is told apart"


def test_settings_for_training_are_imported() -> None:
    """The stop rule, the limit of the gates, the gradient: the official "onestep" is ``Neumann(1)``."""
    config = import_official(FIXTURE).config
    assert (config.tolerance, config.min_evaluations, config.max_evaluations) == (3e-4, 6, 64)
    assert (config.gate_start, config.gate_limit, config.gradient) == (0.75, 0.75, "neumann")
    assert config.zero_init_attractor is False


def test_a_checkpoint_is_read_as_the_authors_publish_it(copy, expected) -> None:
    """With ``model.pt``, the name of their class, the earlier name of the model, and the settings of their 770M."""
    (copy / "pytorch_model.bin").rename(copy / "model.pt")
    of_770m = {"backward_type": "anderson", "adjoint_grad_clip": 2.0, "anderson_beta": 0.96}
    edit(copy, lambda config: config.update(_class_name="EQLMConfig", model_class_name="EQLM", **of_770m))
    model = import_official(copy)
    assert (model.config.gradient, model.config.adjoint_clip, model.config.mixing) == ("implicit", None, 0.96)
    for name, budget in BUDGETS.items():
        with torch.no_grad():
            assert (model(expected["input_ids"], **budget).logits - expected[name]).abs().max() < 2e-4
    edit(copy, lambda config: config.update(backward_type="onestep"))
    assert import_official(copy).config.adjoint_clip == 2.0


def test_every_way_to_store_the_weights_is_read(copy, weights) -> None:
    """Safetensors without the tied head, and shards of both formats, give the same model."""
    wanted = import_official(copy).state_dict()
    (copy / "pytorch_model.bin").unlink()
    untied = {k: v.contiguous() for k, v in weights.items() if k != "lm_head.weight"}
    names = sorted(untied)
    parts = {"a": {k: untied[k] for k in names[::2]}, "b": {k: untied[k] for k in names[1::2]}}

    def shards(name: str, save) -> None:
        stem, suffix = name.split(".")
        for part, tensors in parts.items():
            save(tensors, copy / f"{stem}-{part}.{suffix}")
        places = {k: f"{stem}-{part}.{suffix}" for part, tensors in parts.items() for k in tensors}
        (copy / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))

    for store in (
        lambda: save_file(untied, copy / "model.safetensors"),
        lambda: shards("model.safetensors", save_file),
        lambda: shards("pytorch_model.bin", torch.save),
    ):
        store()
        state = import_official(copy).state_dict()
        assert all(torch.equal(state[k], wanted[k]) for k in wanted)
        for file in copy.glob("*model*"):
            file.unlink()

    shards("model.safetensors", save_file)
    (copy / "model-b.safetensors").unlink()
    assert "model-b.safetensors: this shard is missing" in refused(copy)
    save_file(parts["a"], copy / "model-b.safetensors")
    assert "lacks the tensor" in refused(copy) or "against the index" in refused(copy)


@pytest.mark.parametrize("name", sorted({*json.loads((FIXTURE / "config.json").read_text())} - IGNORED_SETTINGS))
def test_a_missing_setting_is_named(name: str, copy) -> None:
    """Every setting that changes the network."""
    edit(copy, lambda config: config.pop(name))
    assert f"{name!r} is missing" in refused(copy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "other") for name in FIXED_SETTINGS),
        ("model_class_name", "Parcae"),
        ("backward_type", "other"),
        ("init_strategy", "other"),
        ("adjoint_grad_clip", 0),
        ("bias", 0),
        ("logit_softcap", 15.0),
        ("num_key_value_heads", 2),
        ("recurrent_embedding_dimension", 32),
        ("n_embd", "wide"),
        ("tol", -1.0),
        ("n_fp_blocks", 1.5),
        ("vocab_size", 300),
        ("rope_settings", None),
        ("new_setting", 1),
    ],
)
def test_a_value_that_is_not_implemented_is_named(name: str, value, copy) -> None:
    """Also wrong types and unknown settings."""
    edit(copy, lambda config: config.update({name: value}))
    named = {
        "n_embd": "recurrent_embedding_dimension",
        "tol": "tolerance",
        "adjoint_grad_clip": "adjoint_clip",
        "n_fp_blocks": "num_attractor_layers",
    }
    assert named.get(name, name) in refused(copy)


@pytest.mark.parametrize("strategy", ["takase", "takase-scaled", "llama-by-dim-ls", "scaled-and-logit-scale", "shaped"])
def test_an_initialisation_that_scales_embeddings_or_logits_is_refused(strategy: str, copy) -> None:
    """It multiplies them in every forward pass; one that only draws weights is accepted."""
    edit(copy, lambda config: config.update(init_strategy=strategy))
    assert f"init_strategy={strategy!r}" in refused(copy)
    edit(copy, lambda config: config.update(init_strategy="scaled"))
    import_official(copy)


@pytest.mark.parametrize(("name", "value"), [("use_rope", False), ("rope_condense_ratio", 2), ("scaling", 1)])
def test_rotary_settings_are_checked_too(name: str, value, copy) -> None:
    """They are nested settings."""
    edit(copy, lambda config: config["rope_settings"].update({name: value}))
    assert name in refused(copy)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda w: w.pop("transformer.ln_f.weight"), "'transformer.ln_f.weight' is missing"),
        (lambda w: w.pop("freqs_cis"), "'freqs_cis' is missing"),
        (lambda w: w.update({"transformer.ln_g.weight": w["freqs_cis"]}), "'transformer.ln_g.weight' is not known"),
        (lambda w: w.update({"transformer.ln_f.weight": torch.ones(3)}), "shape"),
        (lambda w: w.update({"lm_head.weight": w["lm_head.weight"] + 1}), "tie_embeddings"),
        (lambda w: w.update({"freqs_cis": w["freqs_cis"].flip(1)}), "rope_base"),
        (lambda w: w.update({"step": 3}), "dictionary of tensors"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(damage, says: str, copy, weights) -> None:
    """Missing, unknown, of another shape, or inconsistent with the settings."""
    changed = dict(weights)
    damage(changed)
    torch.save(changed, copy / "pytorch_model.bin")
    assert says in refused(copy)


class Harmful:
    """An object for a pickle that is not a tensor."""


def test_a_pickle_of_other_objects_is_refused_without_running_code(copy) -> None:
    """So are damaged and missing files, and a folder without settings."""
    torch.save({"freqs_cis": Harmful()}, copy / "pytorch_model.bin")
    assert "cannot be read as tensors" in refused(copy)
    (copy / "pytorch_model.bin").write_bytes(b"nothing")
    assert "cannot be read as tensors" in refused(copy)
    (copy / "pytorch_model.bin").unlink()
    assert "holds no weights" in refused(copy)
    (copy / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(copy)
    (copy / "config.json").unlink()
    assert "does not exist" in refused(copy)
