"""torch.export and ONNX: the logits of a fixed depth, for every batch, length and padding, or one sentence."""

import pytest
import torch
from tests.small_models import SIZES, randomised

from attractor import ConfigError
from attractor.interop import export_onnx
from attractor.models.language import AttractorConfig, AttractorForCausalLM, LoopedConfig, LoopedForCausalLM

IDS = torch.randint(0, 300, (3, 31), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones_like(IDS)
PADDED[1, :9], PADDED[2, 20:] = 0, 0


def build(**changes) -> AttractorForCausalLM:
    """A small model; every weight changes the output."""
    return randomised(AttractorForCausalLM(AttractorConfig(**{**SIZES, "num_attractor_layers": 1, **changes})))


def exported(model, depth: int, **inputs) -> torch.nn.Module:
    """The graph of ``torch.export``, made from other batches and lengths."""
    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", min=2, max=128)
    varies = {"input_ids": {0: batch, 1: length}, "depth": None} | {name: {0: batch, 1: length} for name in inputs}
    example = {name: value[:2, :16].contiguous() for name, value in inputs.items()}
    kwargs = {"input_ids": torch.zeros(2, 16, dtype=torch.long), "depth": depth, **example}
    with torch.no_grad():
        return torch.export.export(model, (), kwargs, dynamic_shapes=varies).module()


@pytest.mark.parametrize(
    ("changes", "depth"),
    [
        ({}, 0),
        ({"attention_window": 8}, 1),
        ({}, 3),
        ({"num_attractor_layers": 2, "start": "zero", "num_key_value_heads": 1, "injection": "sum"}, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_padded", [False, True])
def test_torch_export_has_the_logits_of_the_depth(changes: dict, depth: int, is_padded: bool) -> None:
    """And the solution, of any depth; the mask is an input, whatever it hides."""
    model, inputs = build(**changes), {"attention_mask": PADDED} if is_padded else {}
    graph = exported(model, depth, **inputs)
    for rows, length in ((3, 31), (1, 2)):
        some = {name: value[:rows, :length] for name, value in inputs.items()}
        with torch.no_grad():
            found = graph(input_ids=IDS[:rows, :length], depth=depth, **some)
            wanted = model(IDS[:rows, :length], depth=depth, **some)
        is_real = some.get("attention_mask", torch.ones(rows, length)) != 0
        assert (found.logits - wanted.logits)[is_real].abs().max() < 1e-5
        assert (found.solution.evaluations == depth).all()


def test_an_equilibrium_and_scalings_by_length_are_not_exported() -> None:
    """In one sentence."""
    with pytest.raises(ConfigError, match="or depth=n of a model"):
        torch.export.export(build(), (), {"input_ids": IDS})
    scaled = build(position_scaling={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ConfigError, match="'dynamic' depends on the length"):
        torch.export.export(scaled, (), {"input_ids": IDS, "depth": 1})


def test_onnxruntime_has_the_logits_of_the_depth(tmp_path, tokenizer) -> None:
    """For one token and for the longest text, with padding on both sides; weights in bfloat16 become float32."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, depth = build().to(torch.bfloat16), 2
    wide = export_onnx(model, tmp_path / "out", depth=depth, tokenizer=tokenizer)
    assert (model.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    assert "input_ids" in (tmp_path / "out" / "README.md").read_text()
    assert {"model.onnx", "config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    longest = torch.arange(128)[None]
    for ids, mask in ((IDS, PADDED), (IDS[:1, :1], PADDED[:1, :1]), (longest, torch.ones_like(longest))):
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            wanted = wide(ids, mask, depth=depth).logits
        assert (torch.from_numpy(found) - wanted)[mask != 0].abs().max() < 1e-4


@pytest.mark.parametrize(
    ("model", "depth", "says"),
    [
        (lambda: build(num_attractor_layers=0), 2, "a plain Transformer is exported with all layers"),
        (build, -1, "from 0 up"),
        (
            lambda: LoopedForCausalLM(LoopedConfig(**{**SIZES, "num_hidden_layers": 4})).model,
            1,
            "is not of this package",
        ),
        (lambda: build(position_scaling={"rope_type": "dynamic", "factor": 2.0}), 1, "cannot be exported"),
    ],
)
def test_what_cannot_be_exported_to_onnx_is_refused(model, depth: int, says: str, tmp_path) -> None:
    """In one sentence, and nothing is written."""
    pytest.importorskip("onnxscript")
    with pytest.raises(ConfigError, match=says) as caught:
        export_onnx(model(), tmp_path / "out", depth=depth)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
