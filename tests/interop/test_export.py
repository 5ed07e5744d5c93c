"""Stock folders: the logits of a fixed depth without this package, and a reason where there can be none."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from attractor.errors import ConfigError
from attractor.interop.stock_export import HeldOut, export, to_stock
from attractor.models.language import AttractorConfig, AttractorForCausalLM, LoopedConfig, LoopedForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
IDS = torch.randint(2, 97, (2, 24), generator=torch.Generator().manual_seed(0))
ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3])
assert not any(name.split(".")[0] == "attractor" for name in sys.modules)
"""


def build(**changes) -> AttractorForCausalLM:
    """A small model; every weight changes the output."""
    torch.manual_seed(0)
    model = AttractorForCausalLM(AttractorConfig(**{**SIZES, "num_attractor_layers": 2, **changes}))
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.15)
        else:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    return model.eval()


def test_it_loads_without_this_package(tmp_path) -> None:
    """In a new process, with our logits."""
    model = build()
    export(model, tmp_path / "out", depth=1)
    torch.save(IDS, tmp_path / "ids")
    subprocess.run(
        [sys.executable, "-c", ALONE, tmp_path / "out", tmp_path / "ids", tmp_path / "logits"], check=True, timeout=120
    )
    with torch.no_grad():
        assert (torch.load(tmp_path / "logits") - model(IDS, depth=1).logits).abs().max() < 1e-5


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": False},
        {"tie_word_embeddings": False},
        {"head_dim": 16, "num_key_value_heads": 1, "rope_theta": 1e4, "rms_norm_eps": 1e-3},
    ],
    ids=str,
)
def test_logits_are_those_of_the_depth(changes: dict, depth: int, tmp_path) -> None:
    """Of all layers, or of the backbone; its generation with a cache equals ours without."""
    model = build(**changes)
    export(model, tmp_path / "out", depth=depth)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(stock) is (LlamaForCausalLM if changes.get("qk_norm") is False else Qwen3ForCausalLM)
    assert stock.config.use_cache
    assert stock.config.num_hidden_layers == (4 if depth else 2)
    with torch.no_grad():
        logits = model(IDS, depth=depth).logits
        assert (stock(IDS).logits - logits).abs().max() < 1e-5
        assert (model(IDS).logits - logits).abs().max() > 1e-3, "the equilibrium must be another answer"
    written = stock.generate(IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(written, model.generate(IDS, max_new_tokens=8, do_sample=False, depth=depth, use_cache=False))


def test_a_plain_transformer_is_exported_with_all_layers(tmp_path) -> None:
    """It has no gates, and no other depth."""
    model = build(num_attractor_layers=0)
    with torch.no_grad():
        assert (export(model, tmp_path / "out", depth=1)(IDS).logits - model(IDS).logits).abs().max() < 1e-5
    with pytest.raises(ConfigError, match="depth=1"):
        export(model, tmp_path / "other", depth=0)


@pytest.mark.parametrize("injection", ["sum", "concat", "none"])
def test_other_injections_have_a_stock_proposal(injection: str, tmp_path) -> None:
    """Only depth 1 has no stock form."""
    model = build(injection=injection)
    with torch.no_grad():
        logits = model(IDS, depth=0).logits
        assert (export(model, tmp_path / "out", depth=0)(IDS).logits - logits).abs().max() < 1e-5


def test_half_precision_weights_stay_in_half_precision(tmp_path) -> None:
    """And the folder holds bitwise the model that was returned."""
    stock = export(build().to(torch.bfloat16), tmp_path / "out", depth=1)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert stock.dtype == again.dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, stock(IDS).logits)


@pytest.mark.parametrize(
    ("model", "depth", "says"),
    [
        (lambda: build(injection="sum"), 1, r"F\(2c\) − c.*give depth=0"),
        (lambda: build(num_attractor_layers=4, start="zero"), 0, "does not start from a proposal"),
        (lambda: build(num_attractor_layers=4, start="zero"), 1, "does not start from a proposal"),
        (lambda: LoopedForCausalLM(LoopedConfig(**SIZES)), 1, "looped model"),
        (lambda: build(hidden_act="relu2"), 0, "MLP of stock Qwen3 and Llama is gated"),
        (build, 2, "give 0 .* or 1"),
        (build, -1, "give 0 .* or 1"),
        (lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)), 1, "needs no export"),
    ],
)
def test_a_model_that_no_stock_model_equals_is_refused(model, depth: int, says: str, tmp_path) -> None:
    """In one sentence with the reason, and nothing is written."""
    with pytest.raises(ConfigError, match=says) as caught:
        export(model(), tmp_path / "out", depth=depth)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_no_files(tmp_path) -> None:
    """And an existing folder stays as it is."""

    class Broken:
        def save_pretrained(self, folder) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="No space left"):
        export(build(), tmp_path / "out", depth=1, tokenizer=Broken())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(build(), tmp_path / "out", depth=1)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_card_says_what_was_measured_and_what_was_not(tmp_path) -> None:
    """Both figures, or that there are none."""
    model = build()
    export(model, tmp_path / "a", depth=0)
    assert "Not measured." in (tmp_path / "a" / "README.md").read_text()
    held_out = HeldOut(num_documents=3, num_bytes=4567, exported=1.25, equilibrium=1.125)
    export(model, tmp_path / "b", depth=0, held_out=held_out)
    card = (tmp_path / "b" / "README.md").read_text()
    assert "3 document(s), 4,567 bytes" in card
    assert "(depth 0) | 1.2500 |" in card
    assert "equilibrium | 1.1250 |" in card
    assert "Not measured" not in card


def test_torch_export_exports_the_stock_model() -> None:
    """As a graph for sequences of any length, with the logits of the depth."""
    model = build()
    length = torch.export.Dim("length", min=2, max=SIZES["max_position_embeddings"])
    program = torch.export.export(
        to_stock(model, 1),
        (),
        {"input_ids": IDS, "use_cache": False},
        dynamic_shapes={"input_ids": {1: length}, "use_cache": None},
    )
    with torch.no_grad():
        logits = program.module()(input_ids=IDS[:, :9], use_cache=False).logits
        assert (logits - model(IDS[:, :9], depth=1).logits).abs().max() < 1e-5
