"""A pretrained backbone as an attractor: at depth 1 it is the original; unsupported backbones are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from attractor.errors import CheckpointError, ConfigError
from attractor.interop import retrofit, to_stock

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ORIGINAL = {"original_max_position_embeddings": 16}
PARTS = {  # of tiny models: the family, and settings of its configuration
    "llama 3.1": ("llama", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        **ORIGINAL}}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
                          "max_position_embeddings": 16}),
    "yarn": ("qwen3", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, **ORIGINAL}}),
    "longrope": ("llama", {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0] * 6, "long_factor": [4.0] * 6,
        **ORIGINAL}}),
    "all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "mistral with windows": ("mistral", {"sliding_window": 6}),
    "mistral without windows": ("mistral", {"sliding_window": None}),
    "qwen2 with some windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "qwen3 with windows in the attractor": (
        "qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 3}),
}  # fmt: skip


def save(folder: Path, family: str, shard_size: str = "1GB", **changes) -> torch.nn.Module:
    """Write a backbone whose every weight changes the output, and return it."""
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **changes})).eval()
    for name, p in backbone.named_parameters():
        if p.ndim == 2 or "bias" in name:
            torch.nn.init.normal_(p, std=0.15)
        elif "norm" in name:
            torch.nn.init.uniform_(p, 0.5, 1.5)
    backbone.save_pretrained(folder, max_shard_size=shard_size)
    return backbone


def tokens() -> torch.Tensor:
    return torch.randint(4, SIZES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("head_dim", [12, 20])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_depth_one_is_the_original_and_depth_zero_its_first_layers(
    family: str, tied: bool, head_dim: int, tmp_path
) -> None:
    """To 1e-5, with grouped queries, tied and untied heads, heads of any width; also after saving and loading."""
    original = save(tmp_path / "a", family, tie_word_embeddings=tied, head_dim=head_dim)
    model = retrofit(tmp_path / "a", num_attractor_layers=2)
    ids = tokens()
    model.save_pretrained(tmp_path / "b")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    with torch.no_grad():
        expected = original(ids).logits
        assert (model(ids, depth=1).logits - expected).abs().max() < 1e-5
        assert torch.equal(again(ids, depth=1).logits, model(ids, depth=1).logits)
        del original.model.layers[2:]
        first = original(ids).logits
        assert (model(ids, depth=0).logits - first).abs().max() < 1e-5
        assert (expected - first).abs().max() > 0.1, "the last layers must matter, or nothing is tested"
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert again.generation_config.eos_token_id == [2, 3]


def test_its_default_is_the_original_until_a_training_step(tmp_path) -> None:
    """In a training loop of one's own, too: the step solves, and so do later evaluations. A setting changes it."""
    save(tmp_path, "qwen3")
    model, ids = retrofit(tmp_path), tokens()
    assert model.budget() == {"depth": 1}
    assert model.budget(max_evaluations=5) == {"tolerance": model.config.tolerance, "max_evaluations": 5}
    loss = model.train()(ids, labels=ids, depth=1).loss
    assert model.config.budget == {"depth": 1}
    assert model(ids, labels=ids, max_evaluations=4).loss != loss
    assert model(ids, labels=ids).loss != loss
    assert model.config.budget is None
    assert "tolerance" in model.eval().budget()
    assert retrofit(tmp_path, budget=None).config.budget is None
    with pytest.raises(ConfigError, match="'steps' is none of depth"):
        retrofit(tmp_path, budget={"steps": 1})


def test_without_attractor_layers_it_is_a_plain_transformer(tmp_path) -> None:
    """It has the original's logits."""
    original = save(tmp_path, "qwen3")
    with torch.no_grad():
        plain = retrofit(tmp_path, num_attractor_layers=0)(tokens())
        assert (plain.logits - original(tokens()).logits).abs().max() < 1e-5
    assert plain.solution is None


@pytest.mark.parametrize("part", PARTS)
def test_positions_biases_and_windows_are_those_of_the_family(part: str, tmp_path) -> None:
    """Depth 1 is the original, beyond the original length too; export gives the original back; a solve keeps to windows."""
    family, changes = PARTS[part]
    original = save(tmp_path, family, **{"head_dim": 12, **changes})
    model, ids = retrofit(tmp_path, num_attractor_layers=2), tokens()
    with torch.no_grad():
        for length in (8, 24):
            expected = original(ids[:, :length]).logits
            assert (model(ids[:, :length], depth=1).logits - expected).abs().max() < 1e-5
        stock = to_stock(model, 1)
        assert stock.config.model_type == ("llama" if part == "mistral without windows" else family)
        assert (stock(ids).logits - original(ids).logits).abs().max() < 1e-5
        if "windows" in part:
            whole = retrofit(tmp_path, num_attractor_layers=2)
            whole.config.attention_window = None
            assert ((whole(ids, depth=1).logits - expected).abs().max() > 0.01) == ("without" not in part)
        settings = {"max_new_tokens": 6, "do_sample": False}
        mask = torch.ones_like(ids[:, :12])
        ours, theirs = (m.generate(ids[:, :12], attention_mask=mask, **settings) for m in (model, original))
        assert torch.equal(ours, theirs)
        if part not in ("dynamic", "longrope"):  # positions change with the length of the text
            for layer in model.model.layers[2:]:  # random layers do not contract
                layer.self_attn_gate.raw.fill_(-3)
                layer.mlp_gate.raw.fill_(-3)
            solved = model(ids, tolerance=1e-6)
            assert solved.solution.outcome.converged
            start = model(ids[:, :10], tolerance=1e-6)
            rest = model(ids[:, 10:], tolerance=1e-6, cache=start.cache).logits
            assert (rest - solved.logits[:, 10:]).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_kept(dtype: torch.dtype, tmp_path) -> None:
    """A backbone stored so is computed in float32 by default, and in its own dtype on request."""
    save(tmp_path / "full", "qwen2")
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=dtype)
    original.save_pretrained(tmp_path / "half")
    ids = tokens()
    with torch.no_grad():
        expected = original(ids).logits.float()
        for asked in (torch.float32, dtype):
            model = retrofit(tmp_path / "half", dtype=asked)
            assert {p.dtype for p in model.parameters()} == {asked}
            assert (model(ids, depth=1).logits - expected).norm() < 0.05 * expected.norm()
            model.save_pretrained(tmp_path / str(asked))
            again = AutoModelForCausalLM.from_pretrained(tmp_path / str(asked))
            assert again.dtype == asked
            assert torch.equal(again(ids, depth=1).logits, model(ids, depth=1).logits)


REFUSED = {
    "hidden_act='gelu'": ("llama", {"hidden_act": "gelu"}),
    "rope_type='axial'.*'default' or 'linear'": (
        "llama", {"rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}}),
    "full_attention after sliding_attention": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 4,
                  "layer_types": ["sliding_attention", "full_attention"] * 2}),
}  # fmt: skip


@pytest.mark.parametrize("says", sorted(REFUSED))
def test_a_backbone_with_an_unsupported_part_is_refused(says: str, tmp_path) -> None:
    """In one sentence that names the part."""
    family, changes = REFUSED[says]
    AutoConfig.for_model(family, **{**SIZES, **changes}).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=says) as caught:
        retrofit(tmp_path)
    assert "\n" not in str(caught.value)


def test_other_families_and_settings_are_refused(tmp_path) -> None:
    """The message says what would work."""
    save(tmp_path / "good", "llama")
    for settings, says in (
        ({"num_attractor_layers": 5}, "exceeds num_hidden_layers=4"),
        ({"hidden_size": 64}, "fixed by the backbone"),
        ({"injection": "sum"}, "fixed by the backbone"),
        ({"tolerances": 1e-3}, "did you mean 'tolerance'"),
    ):
        with pytest.raises(ConfigError, match=says):
            retrofit(tmp_path / "good", **settings)
    config = json.loads((tmp_path / "good" / "config.json").read_text())
    for family in ("gpt2", "olmo2"):
        (tmp_path / "good" / "config.json").write_text(json.dumps({**config, "model_type": family}))
        with pytest.raises(ConfigError, match=f"'{family}'; give one of llama, mistral, qwen2, qwen3"):
            retrofit(tmp_path / "good")


def test_shards_are_joined_and_a_missing_or_damaged_one_is_named(tmp_path) -> None:
    """An incomplete model is refused."""
    original = save(tmp_path / "complete", "qwen3", shard_size="50KB")
    shards = sorted((tmp_path / "complete").glob("model-*.safetensors"))
    assert len(shards) > 1
    with torch.no_grad():
        model = retrofit(tmp_path / "complete")
        assert (model(tokens(), depth=1).logits - original(tokens()).logits).abs().max() < 1e-5
    for name, damage in (
        ("missing", lambda file: file.unlink()),
        ("damaged", lambda file: file.write_bytes(file.read_bytes()[:100])),
    ):
        shutil.copytree(tmp_path / "complete", tmp_path / name)
        damage(tmp_path / name / shards[-1].name)
        with pytest.raises(CheckpointError, match=name) as caught:
            retrofit(tmp_path / name)
        assert "\n" not in str(caught.value)
    index = json.loads((tmp_path / "complete" / "model.safetensors.index.json").read_text())
    index["weight_map"].pop("model.layers.3.mlp.down_proj.weight")
    (tmp_path / "complete" / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard in shards:  # a file without one of its tensors
        from safetensors.torch import load_file, save_file

        kept = {k: v for k, v in load_file(shard).items() if k != "model.layers.3.mlp.down_proj.weight"}
        save_file(kept, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="down_proj"):
        retrofit(tmp_path / "complete")
    with pytest.raises(CheckpointError, match="no configuration"):
        retrofit(tmp_path / "nowhere")


def test_low_rank_adapters_train_on_the_result(tmp_path) -> None:
    """They start without effect, get gradients through a solve, and can be merged."""
    peft = pytest.importorskip("peft")
    save(tmp_path, "qwen3")
    model = retrofit(tmp_path)
    ids = tokens()
    with torch.no_grad():
        before = model(ids, depth=1).logits
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        assert torch.equal(adapted(input_ids=ids, depth=1).logits, before)
    adapted.train()
    adapted(input_ids=ids, labels=ids, max_evaluations=4).loss.backward()
    trained = [n for n, p in adapted.named_parameters() if p.grad is not None]
    assert len(trained) == 16
    assert all("lora" in n for n in trained)
    with torch.no_grad():
        for p in adapted.parameters():
            p -= 0 if p.grad is None else 0.1 * p.grad
        changed = adapted.eval()(input_ids=ids, depth=1).logits
        with pytest.raises(ConfigError, match="merge_and_unload"):
            to_stock(adapted, 1)
        merged = adapted.merge_and_unload()
        assert (merged(ids, depth=1).logits - changed).abs().max() < 1e-4
        assert (changed - before).abs().max() > 1e-4


def write_gguf(file: Path, backbone: torch.nn.Module, architecture: str = "llama") -> None:
    """Write a Llama as llama.cpp does: queries and keys turn neighbouring channels."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    config, writer = backbone.config, gguf.GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in backbone.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            pairs = value.view(-1, 2, config.head_dim // 2, config.hidden_size)
            value = pairs.transpose(1, 2).reshape(value.shape).contiguous()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_read_and_one_of_another_architecture_refused(tmp_path) -> None:
    """Depth 1 is the model that it holds."""
    original = save(tmp_path / "a", "llama", head_dim=12, tie_word_embeddings=False)
    write_gguf(tmp_path / "tiny.gguf", original)
    write_gguf(tmp_path / "other.gguf", original, "rwkv6")
    model = retrofit(tmp_path / "tiny.gguf")
    with torch.no_grad():
        assert (model(tokens(), depth=1).logits - original(tokens()).logits).abs().max() < 1e-5
    model.save_pretrained(tmp_path / "b")
    assert "quantization" not in (tmp_path / "b" / "config.json").read_text()
    with pytest.raises(CheckpointError, match="rwkv6") as caught:
        retrofit(tmp_path / "other.gguf")
    assert "\n" not in str(caught.value)
