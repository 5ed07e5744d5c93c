"""The paper authors' published checkpoints, read into :class:`AttractorForCausalLM`.

The conversion was checked against stored logits of a tiny official model. The official network differs from ours in
names and in four conventions, which our weights and settings can express:

- Rotary positions turn neighbouring channels (0 with 1, 2 with 3); ours turn channels half a head apart. The rows of
  query and key projections are reordered, head by head.
- QK-norm has no weights and comes after the rotation. The rotation keeps the norm, so QK-norm may come first, with
  weights of one.
- The activation is ``relu(x)² / 2``. The half is folded into the projection after it; this is exact.
- Gates are stored raw, as ours are, with the limit ``gamma_max``.

One thing is approximate. The official QK-norm adds the precision of the number format (1.2e-7 in float32) to the mean
square; ours adds ``norm_eps`` (1e-5), as every norm does. Logits of the tiny random model differ by 9e-5; the
difference shrinks for larger queries and keys.

Every setting must be known and have an implemented value, and every tensor must be known and present: nothing is
guessed.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from attractor.errors import AttractorError, CheckpointError
from attractor.files import read_json
from attractor.interop.known import require_settings, require_tensors, require_value, settings_error
from attractor.interop.weights import ADVICE, read_weights
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.nn.rotary import rotary_angles

# Official settings and our names for them.
RENAMED_SETTINGS = {
    "block_size": "max_position_embeddings",
    "n_embd": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "padded_vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "qk_norm": "qk_norm",
    "n_fp_blocks": "num_attractor_layers",
    "tie_embeddings": "tie_word_embeddings",
    "max_iter": "max_evaluations",
    "min_iter": "min_evaluations",
    "tol": "tolerance",
    "anderson_m": "window",
    "anderson_beta": "mixing",
    "layer_scale_init": "gate_start",
    "gamma_max": "gate_limit",
}
OTHER_SETTINGS = (
    *("n_backbone_layers", "rope_settings", "recurrent_embedding_dimension", "vocab_size"),
    *("backward_type", "adjoint_grad_clip", "model_class_name", "init_strategy"),
)
# The others also multiply embeddings or logits, in every forward pass.
INIT_STRATEGIES = (
    *("scaled-zero", "scaled", "scaled-geiping", "scaled-stuck", "scaled-large-embed", "small", "mitchell", "normal"),
    *("llama", "llama-by-dim", "kaiming", "bert", "megatron", "megatron2", "wang", "illiterate", "bernstein"),
    *("deepnorm-straight", "deepnorm-subln"),
)
# "onestep" is u = v + Jᵀv.
GRADIENTS = {"onestep": "neumann", "anderson": "implicit", "picard": "implicit"}
# Settings with one implemented value.
FIXED_SETTINGS: dict[str, Any] = {
    "use_abacus": False,
    "randomize_positions_from": None,
    "block_class_name": "TransformerPreNormBlock",
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "BaseMLP",
    "nonlin_name": "ReLU2",
    "bias": False,
    "qk_bias": False,
    "mup_model_scaling_factor": 1,
    "debias_attention": False,
    "center_attention": False,
    "clip_qkv": None,
    "logit_softcap": None,
    "causal": True,
    "solver": "anderson",
}
FIXED_ROPE_SETTINGS: dict[str, Any] = {"use_rope": True, "rope_condense_ratio": 1}
# Settings that do not change a trained network: names, initialisation, kernels, training.
IGNORED_SETTINGS = {
    *("name", "_class_name", "hf_config", "padding_multiple", "attn_impl", "init_orthogonal", "skip_initialization"),
    *("use_fused_head", "activation_checkpoint_impl", "simple_ops", "strategy", "fp_lr_scale", "fp_wd"),
    *("backward_max_iter", "backward_min_iter", "backward_tol"),
}
LAYER_TENSORS = {
    "norm_1.weight": "input_layernorm.weight",
    "attn.c_q.weight": "self_attn.q_proj.weight",
    "attn.c_k.weight": "self_attn.k_proj.weight",
    "attn.c_v.weight": "self_attn.v_proj.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "norm_2.weight": "post_attention_layernorm.weight",
    "mlp.fc.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
}
GATE_TENSORS = {"raw_gamma_attn": "self_attn_gate.raw", "raw_gamma_mlp": "mlp_gate.raw"}


def import_official(folder: Path | str) -> AttractorForCausalLM:
    """Return the model of an official checkpoint, in float32 and evaluation mode.

    Parameters
    ----------
    folder
        With ``config.json``, and ``model.pt``, ``pytorch_model.bin`` or ``model.safetensors``, in one file or in shards.

    Raises
    ------
    CheckpointError
        For unknown or missing settings and tensors, values that are not implemented, and damaged files.
    """
    folder = Path(folder)
    config = _config(read_json(folder / "config.json", CheckpointError, advice=ADVICE), folder / "config.json")
    model = AttractorForCausalLM(config)
    model.load_state_dict(_translate(read_weights(folder), config, model.state_dict(), folder))
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def _config(theirs: dict[str, Any], file: Path) -> AttractorConfig:
    known = [*RENAMED_SETTINGS, *OTHER_SETTINGS, *FIXED_SETTINGS]
    require_settings(theirs.keys() - IGNORED_SETTINGS, known, f"{file}: the setting")
    rope = theirs["rope_settings"]
    if not isinstance(rope, dict):
        raise CheckpointError(
            f"{file}: the setting 'rope_settings' is {rope!r}; it must be an object of named settings."
        )
    require_settings(rope, [*FIXED_ROPE_SETTINGS, "rope_base"], f"{file}: the rope setting")
    for settings, fixed in ((theirs, FIXED_SETTINGS), (rope, FIXED_ROPE_SETTINGS)):
        for name, value in fixed.items():
            require_value(file, name, settings[name], value)
    require_value(file, "model_class_name", theirs["model_class_name"], "Attractor", "EQLM")  # its earlier name
    if theirs["init_strategy"] not in INIT_STRATEGIES:
        raise CheckpointError(
            f"{file}: init_strategy={theirs['init_strategy']!r} is unknown or scales embeddings or logits, which is not "
            "implemented here; the published models have 'scaled-zero'."
        )
    require_value(file, "backward_type", theirs["backward_type"], *GRADIENTS)
    gradient = GRADIENTS[theirs["backward_type"]]
    # No official model with grouped queries, or with a state wider than the tokens, was available to compare with.
    require_value(file, "num_key_value_heads", theirs["num_key_value_heads"], theirs["num_attention_heads"])
    require_value(file, "recurrent_embedding_dimension", theirs["recurrent_embedding_dimension"], theirs["n_embd"])
    try:
        if theirs["vocab_size"] > theirs["padded_vocab_size"]:
            raise CheckpointError(f"{file}: vocab_size exceeds padded_vocab_size={theirs['padded_vocab_size']!r}.")
        return AttractorConfig(
            **{ours: theirs[name] for name, ours in RENAMED_SETTINGS.items()},
            num_hidden_layers=theirs["n_backbone_layers"] + theirs["n_fp_blocks"],
            rope_theta=rope["rope_base"],
            hidden_act="relu2",
            injection="sum",
            zero_init_attractor=False,
            gradient=gradient,
            # Their implicit gradient does not look at this setting.
            adjoint_clip=theirs["adjoint_grad_clip"] if gradient == "neumann" else None,
        )
    except CheckpointError:
        raise
    except (AttractorError, TypeError, ValueError) as error:
        raise settings_error(file, error) from error


def _translate(
    theirs: dict[str, Tensor], config: AttractorConfig, ours: dict[str, Tensor], folder: Path
) -> dict[str, Tensor]:
    """Return the weights under our names; require every tensor in its shape, and no other tensor."""
    names = _names(config)
    shapes = {name: tuple(ours[own].shape) for name, own in names.items()}
    shapes["freqs_cis"] = (1, config.max_position_embeddings, 1, config.head_width // 2, 2)
    found, head, embedding = dict(theirs), "lm_head.weight", "transformer.wte.weight"
    if config.tie_word_embeddings and embedding in found:
        found.setdefault(head, found[embedding])  # safetensors stores tied weights once
    require_tensors(found, shapes, folder)
    if config.tie_word_embeddings and not torch.equal(found[head], found[embedding]):
        raise CheckpointError(f"{folder}: {head!r} differs from {embedding!r}, although tie_embeddings is set.")
    _check_angles(found["freqs_cis"], config, folder)

    state = {own: found[name].float() for name, own in names.items()}
    for own in state:
        if own.endswith(("q_proj.weight", "k_proj.weight")):
            state[own] = _reorder_rotary_pairs(state[own], config.head_width)
        elif own.endswith("down_proj.weight"):
            state[own] = state[own] / 2
    for own, value in ours.items():
        if own.endswith(("q_norm.weight", "k_norm.weight")):
            state[own] = torch.ones_like(value)
    return state


def _names(config: AttractorConfig) -> dict[str, str]:
    """Return our name for each official tensor."""
    names = {
        "transformer.wte.weight": "model.embed_tokens.weight",
        "transformer.ln_f.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    num_backbone = config.num_hidden_layers - config.num_attractor_layers
    for i in range(config.num_hidden_layers):
        is_backbone = i < num_backbone
        prefix = f"transformer.prelude.{i}" if is_backbone else f"transformer.core_block.{i - num_backbone}"
        for name, own in (LAYER_TENSORS if is_backbone else LAYER_TENSORS | GATE_TENSORS).items():
            names[f"{prefix}.{name}"] = f"model.layers.{i}.{own}"
    return names


def _check_angles(stored: Tensor, config: AttractorConfig, folder: Path) -> None:
    """Refuse stored rotary angles (1, T, 1, head_dim / 2, 2), cosine and sine last, that differ from the settings."""
    positions = torch.arange(config.max_position_embeddings)[:, None]
    parts = rotary_angles(positions, config.head_width, config.rope_theta)
    angles = torch.stack([part[:, : config.head_width // 2] for part in parts], dim=-1)
    if not torch.allclose(stored[0, :, 0].float(), angles, atol=1e-2):  # they may be in bfloat16
        raise CheckpointError(
            f"{folder}: the tensor 'freqs_cis' does not hold the angles of rope_base={config.rope_theta}."
        )


def _reorder_rotary_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows (heads · head_dim, D), so that neighbouring rows of a rotary pair come half a head apart."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
