"""A pretrained Qwen3 or Llama becomes an attractor whose ``depth=1`` is the original, for its last layers to settle once trained.

Names and shapes are the backbone's own. What is new are the gates of the attractor's layers: their inverse is folded into the
projection before each, so that together they change nothing.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from attractor.config import from_dict
from attractor.errors import CheckpointError, ConfigError
from attractor.models.language.attractor import AttractorConfig, AttractorForCausalLM

QK_NORM = {"qwen3": True, "llama": False}  # the supported families, and whether they normalise queries and keys
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "initializer_range",
    "tie_word_embeddings",
)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def from_backbone(
    path_or_id: str | Path,
    *,
    num_attractor_layers: int = 1,
    gate_start: float = 0.7,
    gate_limit: float = 1.0,
    **settings: Any,
) -> AttractorForCausalLM:
    """Return the attractor model of a pretrained backbone, in float32 and evaluation mode.

    ``model(ids, depth=1)`` is the backbone, ``depth=0`` the backbone without its last layers. Untrained, the update need not
    contract, and what a solve finds may be useless.

    Parameters
    ----------
    path_or_id
        A folder of ``transformers`` or a name on the hub; of the Qwen3 or the Llama family.
    num_attractor_layers
        How many of its last layers become the attractor; 0 leaves a plain Transformer.
    gate_start, gate_limit
        Of the gates, see :class:`AttractorConfig`.
    settings
        Other settings of :class:`AttractorConfig` that say how it is solved, such as ``tolerance`` and ``gradient``.

    Raises
    ------
    ConfigError
        For a backbone of another family or with parts that this model has not, and for settings that are the backbone's.
    CheckpointError
        For one that is absent, incomplete or damaged.
    """
    try:
        found = AutoConfig.from_pretrained(path_or_id)
    except Exception as error:  # of many kinds: the library parses whatever lies there
        raise CheckpointError(f"{path_or_id}: has no configuration that can be read ({_first_line(error)}).") from error
    solving = {"num_attractor_layers": num_attractor_layers, "gate_start": gate_start, "gate_limit": gate_limit}
    config = _convert(found, str(path_or_id), {**solving, **settings})
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path_or_id, config=found, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise CheckpointError(f"{path_or_id}: its weights cannot be loaded ({_first_line(error)}).") from error
    backbone, info = loaded
    odd = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]))
    if odd:
        raise CheckpointError(
            f"{path_or_id}: its weights do not fit its config.json ({len(odd)} differ, first {odd[0]}); "
            "the checkpoint is damaged or incomplete."
        )
    with torch.device("meta"):  # no memory and no random numbers for weights that are already there
        model = AttractorForCausalLM(config)
    model.load_state_dict(backbone.state_dict(), strict=False, assign=True)
    model.tie_weights()
    for layer in model.model.layers[model.num_backbone_layers :]:
        for gate, projection in (
            (layer.self_attn_gate, layer.self_attn.o_proj),
            (layer.mlp_gate, layer.mlp.down_proj),
        ):
            gate.to_empty(device="cpu").reset_parameters()
            with torch.no_grad():
                projection.weight /= gate.value()[:, None]
    for name in SPECIAL:  # here a list of ends is kept as a list
        setattr(model.generation_config, name, getattr(backbone.generation_config, name))
    return model.eval()


def _convert(found: PreTrainedConfig, where: str, settings: dict[str, Any]) -> AttractorConfig:
    if found.model_type not in QK_NORM:
        raise ConfigError(
            f"{where}: is of the family {found.model_type!r}; give one of {' or '.join(sorted(QK_NORM))}."
        )
    rope = found.rope_parameters
    needed = {
        "rope_type": (rope["rope_type"], "default"),
        "hidden_act": (found.hidden_act, "silu"),
        "attention_bias": (found.attention_bias, False),
        "mlp_bias": (getattr(found, "mlp_bias", False), False),
        "attention_dropout": (found.attention_dropout, 0.0),
        "sliding_attention": ("sliding_attention" in (getattr(found, "layer_types", None) or ()), False),
        "quantization_config": (getattr(found, "quantization_config", None), None),
    }
    for name, (value, wanted) in needed.items():
        if value != wanted:
            raise ConfigError(
                f"{where}: has {name}={value!r}; only backbones with {name}={wanted!r} can be retrofitted."
            )
    own: dict[str, Any] = {name: getattr(found, name) for name in SIZES}
    own |= {name: getattr(found, name) for name in SPECIAL}
    if isinstance(own["eos_token_id"], list):
        own["eos_token_id"] = own["eos_token_id"][0]
    own |= {"qk_norm": QK_NORM[found.model_type], "rope_theta": float(rope["rope_theta"])}
    own |= {"injection": "mean", "start": "proposal"}  # only then is depth 1 the backbone
    if taken := sorted(own.keys() & settings.keys()):
        raise ConfigError(
            f"{taken[0]}={settings[taken[0]]!r}: is fixed by the backbone and by depth=1 being it; leave it out."
        )
    return from_dict(AttractorConfig, {**own, **settings})


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
