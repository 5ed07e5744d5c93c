"""The paper authors' published checkpoints, read into :class:`AttractorForCausalLM`.

What their network computes was worked out against stored logits of a tiny one. It differs from ours in names and in four
conventions, all of which our weights and settings express:

- Rotary positions turn neighbouring channels (0 with 1, 2 with 3), ours turn channels half a head apart: the rows of query and
  key projections are put into our order, head by head.
- QK-norm has no weights and comes after the rotation; that keeps the norm, so it may come before, with weights of one.
- The activation is ``relu(x)² / 2``: the half is folded into the projection after it, exactly, being a power of two.
- Gates are stored raw, as ours are, below ``gamma_max``.

One thing is approximate. Their QK-norm adds the precision of the number format (1.2e-7 in float32) to the mean square, ours
adds ``norm_eps`` (1e-5) as in every norm. Logits of the tiny random network differ by 9e-5 for it; larger queries and keys
make that less.

Every setting must be known and have a value that we implement, and every tensor must be known and be there: nothing is guessed.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attractor.config import suggestion
from attractor.errors import AttractorError, CheckpointError
from attractor.interop.weights import read_json, read_weights
from attractor.models.language import AttractorConfig, AttractorForCausalLM
from attractor.nn.transformer import rotary

# Settings we take over, and what they are called here.
TAKEN = {
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
    "layer_scale_init": "gate_start",
    "gamma_max": "gate_limit",
}
READ = ("n_backbone_layers", "rope_settings", "recurrent_embedding_dimension", "vocab_size")
# Settings of which we implement one value.
FIXED: dict[str, Any] = {
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
    "anderson_beta": 1.0,
    "backward_type": "onestep",  # u = v + Jᵀv, which is Neumann(1) here
    "adjoint_grad_clip": None,
    "model_class_name": "Attractor",
}
ROPE: dict[str, Any] = {"use_rope": True, "rope_condense_ratio": 1}
# What a finished network does not depend on: names, starting values, kernels, and the training of theirs.
IGNORED = {
    *("name", "hf_config", "padding_multiple", "attn_impl", "init_strategy", "init_orthogonal", "skip_initialization"),
    *(
        "use_fused_head",
        "activation_checkpoint_impl",
        "simple_ops",
        "strategy",
        "backward_max_iter",
        "backward_min_iter",
    ),
    *("backward_tol", "fp_lr_scale", "fp_wd"),
}
LAYER = {
    "norm_1.weight": "input_layernorm.weight",
    "attn.c_q.weight": "self_attn.q_proj.weight",
    "attn.c_k.weight": "self_attn.k_proj.weight",
    "attn.c_v.weight": "self_attn.v_proj.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "norm_2.weight": "post_attention_layernorm.weight",
    "mlp.fc.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
}
GATES = {"raw_gamma_attn": "self_attn_gate.raw", "raw_gamma_mlp": "mlp_gate.raw"}


def import_official(folder: Path | str) -> AttractorForCausalLM:
    """Return the model of an official checkpoint, in float32 and evaluation mode.

    Parameters
    ----------
    folder
        With ``config.json``, and ``pytorch_model.bin`` or ``model.safetensors``, whole or in shards.

    Raises
    ------
    CheckpointError
        For settings and tensors that are unknown or missing, values that are not implemented, damaged files.
    """
    folder = Path(folder)
    config = _config(read_json(folder / "config.json"), folder / "config.json")
    model = AttractorForCausalLM(config)
    model.load_state_dict(_translate(read_weights(folder), config, model.state_dict(), folder))
    return model.eval()


def _config(theirs: dict[str, Any], file: Path) -> AttractorConfig:
    wanted = [*TAKEN, *READ, *FIXED]
    _same_names(theirs.keys() - IGNORED, set(wanted), f"{file}: the setting")
    rope = theirs["rope_settings"]
    if not isinstance(rope, dict):
        raise CheckpointError(f"{file}: the setting 'rope_settings' is {rope!r}, not named settings.")
    _same_names(set(rope), {*ROPE, "rope_base"}, f"{file}: the rope setting")
    for settings, fixed in ((theirs, FIXED), (rope, ROPE)):
        for name, value in fixed.items():
            _require(file, name, settings[name], value)
    # Of grouped queries and a state of another width than the tokens' we have seen no network to compare with.
    _require(file, "num_key_value_heads", theirs["num_key_value_heads"], theirs["num_attention_heads"])
    _require(file, "recurrent_embedding_dimension", theirs["recurrent_embedding_dimension"], theirs["n_embd"])
    try:
        if theirs["vocab_size"] > theirs["padded_vocab_size"]:
            raise CheckpointError(f"{file}: vocab_size exceeds padded_vocab_size={theirs['padded_vocab_size']!r}.")
        return AttractorConfig(
            **{ours: theirs[name] for name, ours in TAKEN.items()},
            num_hidden_layers=theirs["n_backbone_layers"] + theirs["n_fp_blocks"],
            rope_theta=rope["rope_base"],
            hidden_act="relu2",
            injection="sum",
            gradient="neumann",
        )
    except CheckpointError:
        raise
    except (AttractorError, TypeError, ValueError) as error:  # by our names, next to which stand theirs
        reason = " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(f"{file}: its settings make no model ({reason}).") from error


def _same_names(found: set[str], wanted: set[str], what: str) -> None:
    for name in sorted(found - wanted):
        raise CheckpointError(f"{what} {name!r} is not known, so what it means for the network is not either.")
    for name in sorted(wanted - found):
        raise CheckpointError(f"{what} {name!r} is missing; the official format has it always.")


def _require(file: Path, name: str, value: Any, implemented: Any) -> None:
    if value != implemented or isinstance(value, bool) != isinstance(implemented, bool):  # 0 is not False
        raise CheckpointError(f"{file}: {name}={value!r} is not implemented here; only {implemented!r} is.")


def _translate(
    theirs: dict[str, Tensor], config: AttractorConfig, ours: dict[str, Tensor], folder: Path
) -> dict[str, Tensor]:
    """Return the weights under our names, after checking that there is each of them in its shape, and nothing else."""
    names = _names(config)
    wanted = {name: tuple(ours[own].shape) for name, own in names.items()}
    positions = (1, config.max_position_embeddings, 1, config.head_width // 2, 2)
    wanted["freqs_cis"] = positions
    found = dict(theirs)
    head, embedding = "lm_head.weight", "transformer.wte.weight"
    if config.tie_word_embeddings and embedding in found:
        found.setdefault(head, found[embedding])  # formats that store no tensor twice leave it out
    for name in sorted(found.keys() - wanted.keys()):
        raise CheckpointError(
            f"{folder}: the tensor {name!r} is not known; {suggestion(name, wanted.keys() - found.keys() or wanted)}"
        )
    for name in sorted(wanted.keys() - found.keys()):
        raise CheckpointError(f"{folder}: the tensor {name!r} is missing; the checkpoint is incomplete.")
    for name, shape in wanted.items():
        if tuple(found[name].shape) != shape:
            raise CheckpointError(f"{folder}: the tensor {name!r} has shape {tuple(found[name].shape)}, not {shape}.")
    if config.tie_word_embeddings and not torch.equal(found[head], found[embedding]):
        raise CheckpointError(
            f"{folder}: {head!r} differs from {embedding!r}, though tie_embeddings says they are one."
        )
    _check_angles(found["freqs_cis"], config, folder)

    state = {own: found[name].float() for name, own in names.items()}
    for own in state:
        if own.endswith(("q_proj.weight", "k_proj.weight")):
            state[own] = _halves(state[own], config.head_width)
        elif own.endswith("down_proj.weight"):
            state[own] = state[own] / 2
    for own, value in ours.items():
        if own.endswith(("q_norm.weight", "k_norm.weight")):
            state[own] = torch.ones_like(value)
    return state


def _names(config: AttractorConfig) -> dict[str, str]:
    """Return our name for each of their tensors."""
    names = {
        "transformer.wte.weight": "model.embed_tokens.weight",
        "transformer.ln_f.weight": "model.norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    num_backbone = config.num_hidden_layers - config.num_attractor_layers
    for i in range(config.num_hidden_layers):
        is_backbone = i < num_backbone
        room = f"transformer.prelude.{i}" if is_backbone else f"transformer.core_block.{i - num_backbone}"
        for name, own in (LAYER if is_backbone else LAYER | GATES).items():
            names[f"{room}.{name}"] = f"model.layers.{i}.{own}"
    return names


def _check_angles(stored: Tensor, config: AttractorConfig, folder: Path) -> None:
    """Refuse rotary angles, cosine and sine in the last place, that are not those of the settings."""
    positions = torch.arange(config.max_position_embeddings)[None]
    parts = rotary(positions, config.head_width, config.rope_theta)
    angles = torch.stack([part[0, 0, :, : config.head_width // 2] for part in parts], dim=-1)
    if not torch.allclose(stored[0, :, 0].float(), angles, atol=1e-2):  # they may be stored in bfloat16
        raise CheckpointError(
            f"{folder}: the tensor 'freqs_cis' holds other angles than rope_base={config.rope_theta} gives."
        )


def _halves(weight: Tensor, head_dim: int) -> Tensor:
    """Put the rows (heads · head_dim, D) of pairs of neighbours into the order of pairs half a head apart."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)
