"""An exported model in llama.cpp: the logits of our model at depth 1, whatever its family is."""

import numpy as np
import pytest
import torch
from tests.small_models import SIZES, randomised

from attractor.interop import to_stock
from attractor.models.language import AttractorConfig, AttractorForCausalLM

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

FAMILIES = {
    "qwen3": {},
    "llama": {"qk_norm": False, "num_key_value_heads": 1},
    "llama, scaled positions": {"qk_norm": False, "position_scaling": {"rope_type": "linear", "factor": 2.0}},
    "qwen2": {"qk_norm": False, "attention_bias": True, "tie_word_embeddings": False},
}


def write_gguf(stock, file) -> None:
    """Write a stock model as llama.cpp's converter does, without a tokenizer."""
    config, kind = stock.config, {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}[stock.config.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[kind]])
    for add, value in (
        (writer.add_context_length, config.max_position_embeddings),
        (writer.add_embedding_length, config.hidden_size),
        (writer.add_block_count, config.num_hidden_layers),
        (writer.add_feed_forward_length, config.intermediate_size),
        (writer.add_head_count, config.num_attention_heads),
        (writer.add_head_count_kv, config.num_key_value_heads),
        (writer.add_layer_norm_rms_eps, config.rms_norm_eps),
        (writer.add_key_length, config.head_dim),
        (writer.add_value_length, config.head_dim),
        (writer.add_rope_dimension_count, config.head_dim),
        (writer.add_rope_freq_base, config.rope_parameters["rope_theta"]),
        (writer.add_vocab_size, config.vocab_size),
        (writer.add_tokenizer_model, "none"),
    ):
        add(value)
    if factor := config.rope_parameters.get("factor"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(factor)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind], config.num_hidden_layers)
    for name, value in stock.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if kind == "LLAMA" and name.endswith(("q_proj.weight", "k_proj.weight")):  # neighbours are rotated together
            value = value.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_has_our_logits_at_depth_1(family: str, tmp_path) -> None:
    """In float32, at every position of a text; so the greedy tokens are the same."""
    config = AttractorConfig(**{**SIZES, **FAMILIES[family]}, num_attractor_layers=1)
    model = randomised(AttractorForCausalLM(config))
    write_gguf(to_stock(model, 1), tmp_path / "model.gguf")
    settings = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
    f32 = llama_cpp.GGML_TYPE_F32  # keys and values are float16 by default
    engine = llama_cpp.Llama(str(tmp_path / "model.gguf"), type_k=f32, type_v=f32, **settings)
    ids = torch.randint(0, 300, (48,), generator=torch.Generator().manual_seed(0))
    engine.eval(ids.tolist())
    with torch.no_grad():
        logits = model(ids[None], depth=1).logits[0]
        equilibrium = model(ids[None], tolerance=1e-5).logits[0]
    found = torch.from_numpy(np.array(engine.scores[: len(ids)]))
    assert (found - logits).abs().max() < 1e-4
    assert (found - equilibrium).abs().max() > 1e-2 * logits.abs().max(), "or depth 1 and the equilibrium must differ"
