"""Export to a stock family such as Qwen3 or Llama: a language model at a fixed depth as a folder that engines read.

At depth 1, an attractor with the mean injection is the plain Transformer with all layers; at depth 0, with the
backbone's layers. Gates are folded into the projections before them, because a stock decoder has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

import attractor
from attractor.errors import ConfigError
from attractor.files import new_folder
from attractor.interop.generation import SPECIAL, copy_generation_config
from attractor.models.language import AttractorForCausalLM, LoopedForCausalLM

GATED = {"self_attn_gate": "self_attn.o_proj", "mlp_gate": "mlp.down_proj"}


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Bits per byte of held-out text: exported, and at the equilibrium (None: the model solves nothing)."""

    num_documents: int
    num_bytes: int
    exported: float
    equilibrium: float | None


def export(
    model: Any, out: Path | str, *, depth: int, tokenizer: Any = None, held_out: HeldOut | None = None
) -> PreTrainedModel:
    """Write ``model`` at ``depth`` as a stock model with a model card, and return the stock model.

    ``tokenizer`` is written too; ``held_out`` are figures for the card. Raises ConfigError if no stock model computes
    the same, and if ``out`` exists or cannot be written.
    """
    stock = to_stock(model, depth)
    with new_folder(Path(out)) as folder:
        stock.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(_card(model, stock, depth, Path(out).name, held_out), encoding="utf-8")
    return stock


def to_stock(model: Any, depth: int) -> PreTrainedModel:
    """Return a stock model with the logits of ``model`` at ``depth``: a Qwen3, or without QK-norm a Llama, Qwen2 or Mistral.

    ``model`` is an attractor with gated MLPs, or a plain Transformer (``num_attractor_layers=0``). ``depth`` is 0 for
    the proposal, or 1 for one evaluation. Raises ConfigError if no stock model computes the same.
    """
    require_exportable(model, depth)
    config = model.config
    num_layers = config.num_hidden_layers if depth == 1 else model.model.num_backbone_layers
    kind, parts = _family(config, num_layers)
    sizes: dict[str, Any] = {
        **parts,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "rope_parameters": {"rope_type": "default", **(config.position_scaling or {}), "rope_theta": config.rope_theta},
        "use_cache": True,
    }
    for name in (
        *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "hidden_act", "rms_norm_eps"),
        *("max_position_embeddings", "initializer_range", "tie_word_embeddings", *SPECIAL),
    ):
        sizes[name] = getattr(config, name)
    stock: Any = AutoModelForCausalLM.from_config(kind(**sizes), dtype=model.dtype)  # rotary angles stay in float32
    stock.load_state_dict(fold_gates(model, num_layers))
    copy_generation_config(model, stock)
    stock.config.eos_token_id = stock.generation_config.eos_token_id  # may be several
    return stock.to(model.lm_head.weight.device).eval()


def _family(config: Any, num_layers: int) -> tuple[type[PreTrainedConfig], dict[str, Any]]:
    """Return the stock family that has the same parts, and its settings for them. Raises ConfigError if none has."""
    bias, out_bias, first = config.attention_bias, config.attention_out_bias, config.first_window_layer
    window = config.attention_window if first < num_layers else None
    windows: dict[str, Any] = {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": [
            "full_attention" if window is None or i < first else "sliding_attention" for i in range(num_layers)
        ],
    }
    if config.qk_norm and bias == out_bias and not config.mlp_bias:
        return Qwen3Config, {"attention_bias": bias, **windows}
    if not config.qk_norm and bias and not out_bias and not config.mlp_bias:
        return Qwen2Config, windows
    if not config.qk_norm and not bias and not out_bias and not config.mlp_bias and window and not first:
        return MistralConfig, {"sliding_window": window}
    if not config.qk_norm and bias == out_bias and not window:
        return LlamaConfig, {"attention_bias": bias, "mlp_bias": config.mlp_bias}
    raise ConfigError(
        "no stock family has this combination of qk_norm, attention_bias, attention_out_bias, mlp_bias and attention_window."
    )


def fold_gates(model: AttractorForCausalLM, num_layers: int) -> dict[str, Tensor]:
    """Return the weights without the layers from ``num_layers`` on and what feeds them; gates are folded into the projections."""
    state = {}
    for name, value in model.state_dict().items():
        place = name.split(".")  # such as model.layers.INDEX.PART
        if place[1] != "injection" and (place[1] != "layers" or int(place[2]) < num_layers):
            state[name] = value.detach().clone()
    for i, layer in enumerate(model.model.layers[:num_layers]):
        for gate, projection in GATED.items():
            if state.pop(f"model.layers.{i}.{gate}.raw", None) is not None:
                name = f"model.layers.{i}.{projection}"
                factor = getattr(layer, gate)(torch.ones_like(state[f"{name}.weight"][:, 0])).detach().float()
                for part, by in ((f"{name}.weight", factor[:, None]), (f"{name}.bias", factor)):
                    if part in state:
                        state[part] = (state[part].float() * by).to(state[part].dtype)
    return state


def require_exportable(model: Any, depth: int) -> None:
    """Raise a ConfigError with the reason if no stock model computes the same as ``model`` at ``depth``."""
    if isinstance(model, LoopedForCausalLM):
        raise ConfigError(
            "a looped model cannot be exported: it uses layers repeatedly, and a stock model uses each layer once."
        )
    if hasattr(model, "merge_and_unload"):
        raise ConfigError("this model has an adapter: export what model.merge_and_unload() returns.")
    if not isinstance(model, AttractorForCausalLM):
        raise ConfigError(
            f"{type(model).__name__} is not an attractor model and needs no export; give a model of this package."
        )
    config = model.config
    _family(config, config.num_hidden_layers if depth == 1 else model.model.num_backbone_layers)
    with torch.device("meta"):
        changed = AttractorForCausalLM(config).state_dict().keys() ^ model.state_dict().keys()
    changed |= {name for name, value in model.state_dict().items() if value.is_meta or type(value) is not Tensor}
    if changed:
        raise ConfigError(
            f"the weights differ from those of config.json (first {min(changed)}): merge adapters, and export before "
            "quantization and without device_map."
        )
    if config.hidden_act == "relu2":
        raise ConfigError(
            'hidden_act="relu2" cannot be exported: the MLP of stock Qwen3 and Llama is gated, with SiLU; only "silu" can be.'
        )
    if config.num_attractor_layers == 0:
        if depth != 1:
            raise ConfigError(f"depth={depth}: a plain Transformer is exported with all layers; give depth=1.")
        return
    if config.start != "proposal":
        raise ConfigError(
            f"start={config.start!r} cannot be exported: the solve does not start from a proposal, so that a small fixed depth is "
            "of no use."
        )
    if depth not in (0, 1):
        raise ConfigError(
            f"depth={depth} cannot be exported: a stock model uses each layer once; give 0 (the proposal) or 1 (one evaluation)."
        )
    if config.injection != "mean" and depth == 1:
        evaluation = {"sum": "F(2c) − c", "concat": "F(W [c, c])", "none": "F(c) with gates"}[config.injection]
        raise ConfigError(
            f'injection="{config.injection}" cannot be exported at depth=1: one evaluation is {evaluation}, which is no stock '
            "model; give depth=0."
        )


def _card(model: Any, stock: PreTrainedModel, depth: int, name: str, held_out: HeldOut | None) -> str:
    config, num_solved, solves = model.config, model.config.num_attractor_layers, ""
    origin = "An Attractor Model after one evaluation (depth 1)"
    if depth == 0:
        origin = f"The proposal (depth 0) of an Attractor Model, without its {num_solved} attractor layer(s),"
    if not num_solved:
        origin = "A plain Transformer"
    else:
        solves = (
            "\nThe original model refines its output until it converges; that needs the package and its checkpoint.\n"
        )
        if config.budget and config.budget != {"depth": depth}:
            solves += f"Its stored budget {config.budget} is left out: a stock model solves nothing.\n"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [attractor-models]
---
# {name}

{origin} as a stock `{type(stock).__name__}`, exported by attractor {attractor.__version__}.
{solves}
| | |
|---|---|
| weights | {stock.num_parameters():,} |
| layers, width | {stock.config.num_hidden_layers}, {config.hidden_size} |
| vocabulary, positions | {config.vocab_size:,}, {config.max_position_embeddings:,} |

```python
from transformers import pipeline

print(pipeline("text-generation", "{name}")("Once"))
```

## Held-out loss

{describe_loss(depth, held_out)}
"""


def describe_loss(depth: int, held_out: HeldOut | None) -> str:
    if held_out is None:
        return "Not measured."
    figures: Mapping[str, float | None] = {
        f"this model (depth {depth})": held_out.exported,
        "the original at its equilibrium": held_out.equilibrium,
    }
    rows = [f"| {what} | {value:.4f} |" for what, value in figures.items() if value is not None]
    text = f"On {held_out.num_documents:,} document(s), {held_out.num_bytes:,} bytes, of held-out text:"
    return "\n".join([text, "", "| | bits per byte |", "|---|---|", *rows])
