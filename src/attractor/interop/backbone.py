"""A pretrained language model becomes an attractor model whose ``depth=1`` is the original, ready for further training.

Names and shapes are those of the backbone. Only the gates of the attractor's layers are new: their inverse is folded
into the projection before each gate, so that the two cancel.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from attractor.config import from_dict
from attractor.errors import CheckpointError, ConfigError
from attractor.files.received import check_model_folder, load_reason
from attractor.interop.generation import SPECIAL, copy_generation_config
from attractor.models.language import AttractorConfig, AttractorForCausalLM

# The supported families, whether they normalise queries and keys, and whether those and values always have biases.
FAMILIES = {"llama": (False, False), "mistral": (False, False), "qwen2": (False, True), "qwen3": (True, False)}
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
)


def retrofit(
    path_or_id: str | Path,
    *,
    num_attractor_layers: int = 1,
    gate_start: float = 0.7,
    gate_limit: float = 1.0,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> AttractorForCausalLM:
    """Return the attractor model of a pretrained backbone, in evaluation mode.

    ``model(ids, depth=1)`` is the backbone, ``depth=0`` the backbone without its last layers. Before further training,
    the update need not contract, and a solve may find a useless fixed point. Depth 1 is therefore the stored budget,
    ``config.budget``, until the model is trained or calibrated; ``tolerance=`` solves.

    The model generates as the backbone does: all end tokens, temperature and the like are kept.

    Parameters
    ----------
    path_or_id
        A folder of ``transformers``, a name on the hub, or a file ``.gguf``, of Llama 2 or 3 (also SmolLM and SmolLM2),
        Mistral, Qwen2, Qwen2.5 or Qwen3.
    num_attractor_layers
        How many of the last layers become the attractor; 0 gives a plain Transformer.
    dtype
        Of the weights. Depth 1 equals the backbone to rounding in this dtype.
    gate_start, gate_limit, settings
        Settings of :class:`AttractorConfig` for the gates and the solve, such as ``tolerance`` and ``gradient``.

    Raises
    ------
    ConfigError
        For a backbone of another family or with unsupported parts, and for settings that the backbone fixes.
    CheckpointError
        For a backbone that is missing, incomplete or damaged.
    """
    folder: str | Path = path_or_id
    source: dict[str, Any] = {"trust_remote_code": False}
    if Path(path_or_id).suffix == ".gguf":
        folder, source["gguf_file"] = Path(path_or_id).parent, Path(path_or_id).name
    check_model_folder(Path(folder), CheckpointError)
    try:
        found = AutoConfig.from_pretrained(folder, **source)
    except Exception as error:  # the library raises many kinds
        raise CheckpointError(f"{path_or_id}: has no configuration that can be read ({load_reason(error)}).") from error
    solving = {"num_attractor_layers": num_attractor_layers, "gate_start": gate_start, "gate_limit": gate_limit}
    config = _attractor_config(found, str(path_or_id), {**solving, **settings})
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, config=found, dtype=dtype, output_loading_info=True, **source
        )
    except Exception as error:
        raise CheckpointError(f"{path_or_id}: its weights cannot be loaded ({load_reason(error)}).") from error
    backbone, info = loaded
    if getattr(backbone, "_hf_peft_config_loaded", False):
        raise ConfigError(f"{path_or_id}: has adapters; merge them into the backbone first, with merge_and_unload().")
    differing = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]))
    if differing:
        raise CheckpointError(
            f"{path_or_id}: its weights do not fit its config.json ({len(differing)} differ, first {differing[0]}); "
            "the checkpoint is damaged or incomplete."
        )
    with torch.device("meta"):  # no memory and no random numbers for weights that are replaced
        model = AttractorForCausalLM(config)
    model.load_state_dict(backbone.state_dict(), strict=False, assign=True)
    model.tie_weights()
    for layer in model.model.layers[model.model.num_backbone_layers :]:
        for gate, projection in (
            (layer.self_attn_gate, layer.self_attn.o_proj),
            (layer.mlp_gate, layer.mlp.down_proj),
        ):
            gate.to_empty(device="cpu").to(dtype).reset_parameters()
            with torch.no_grad():
                projection.weight /= gate.value()[:, None]
                if projection.bias is not None:
                    projection.bias /= gate.value()
    copy_generation_config(backbone, model)
    return model.eval()


def _attractor_config(found: PreTrainedConfig, where: str, settings: dict[str, Any]) -> AttractorConfig:
    """Translate the backbone's configuration; refuse backbones that compute something else."""
    if found.model_type not in FAMILIES:
        raise ConfigError(f"{where}: is of the family {found.model_type!r}; give one of {', '.join(sorted(FAMILIES))}.")
    qk_norm, has_bias = FAMILIES[found.model_type]
    rope, kinds = dict(found.rope_parameters), list(getattr(found, "layer_types", None) or ())
    window = getattr(found, "sliding_window", None) if "sliding_attention" in (kinds or ["sliding_attention"]) else None
    num_full = kinds.index("sliding_attention") if window and kinds else 0
    supported = {
        "rope_type": (rope.pop("rope_type"), ("default", *ROPE_INIT_FUNCTIONS)),
        "hidden_act": (found.hidden_act, ("silu",)),
        "attention_dropout": (found.attention_dropout, (0.0,)),
        "quantization_config": (getattr(found, "quantization_config", None), (None,)),
        "full_attention after sliding_attention": (
            "full_attention" in kinds[num_full:] and window is not None,
            (False,),
        ),
    }
    for name, (value, known) in supported.items():
        if value not in known:
            only = " or ".join(map(repr, known))
            raise ConfigError(f"{where}: has {name}={value!r}; only backbones with {name}={only} can be retrofitted.")
    kind = supported["rope_type"][0]
    bias = bool(getattr(found, "attention_bias", False))
    ours: dict[str, Any] = {name: getattr(found, name) for name in (*SIZES, *SPECIAL)}
    if isinstance(ours["eos_token_id"], list):
        ours["eos_token_id"] = ours["eos_token_id"][0]
    ours |= {
        "head_dim": getattr(found, "head_dim", None),
        "qk_norm": qk_norm,
        "rope_theta": float(rope.pop("rope_theta")),
        "position_scaling": None if kind == "default" else {"rope_type": kind, **rope},
        "attention_bias": has_bias or bias,
        "attention_out_bias": bias,
        "mlp_bias": bool(getattr(found, "mlp_bias", False)),
        "attention_window": window,
        "first_window_layer": num_full,
    }
    ours |= {"injection": "mean", "start": "proposal"}  # only then is depth 1 the backbone
    if settings["num_attractor_layers"]:
        settings = {"budget": {"depth": 1}, **settings}
    if taken := sorted(ours.keys() & settings.keys()):
        raise ConfigError(
            f"{taken[0]}={settings[taken[0]]!r}: is fixed by the backbone, so that depth=1 equals it; leave it out."
        )
    return from_dict(AttractorConfig, {**ours, **settings})
