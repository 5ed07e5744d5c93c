"""Export to ONNX: a language model at a fixed depth as one graph, which onnxruntime and other engines run."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import attractor
from attractor.errors import ConfigError, requires_extra
from attractor.files import new_folder
from attractor.files.received import quiet
from attractor.interop.stock_export import HeldOut, describe_loss
from attractor.models.language import LanguageModel

CARD = """---
library_name: onnx
pipeline_tag: text-generation
tags: [attractor-models]
---
# {name}

A `{kind}` with {depth} evaluation(s) per token, exported by attractor {version}.

`model.onnx` reads `input_ids` and `attention_mask` (B, T), int64, and returns `logits` (B, T, {vocab_size}), float32.
The mask is 0 at padding, left or right. T is at most {positions}. There is no cache of keys and values.

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}/model.onnx")
ids = np.ones((1, 8), np.int64)
(logits,) = session.run(None, {{"input_ids": ids, "attention_mask": np.ones_like(ids)}})
```

## Held-out loss

{loss}
"""


def require_onnx(model: Any, depth: int) -> None:
    """Raise a ConfigError with the reason if ``model`` at ``depth`` cannot be exported."""
    with requires_extra("onnx"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    if not isinstance(model, LanguageModel):
        raise ConfigError(f"{type(model).__name__} is not of this package; export it with optimum-onnx.")
    if not model.recurrent_layers and depth != 1:
        raise ConfigError(f"depth={depth}: a plain Transformer is exported with all layers; give depth=1.")
    if depth < 0:
        raise ConfigError(f"depth={depth}: give a number of evaluations from 0 up.")


class _Logits(nn.Module):
    """The model as a function of two tensors, with one output."""

    def __init__(self, model: Any, budget: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.budget = model, budget

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask, use_cache=False, **self.budget).logits


def export_onnx(
    model: Any, out: Path | str, *, depth: int, tokenizer: Any = None, held_out: HeldOut | None = None
) -> Any:
    """Write ``model`` at ``depth`` as ``model.onnx`` with a card in the folder ``out``, and return the model in float32.

    Arguments are those of :func:`export`; ``depth`` is any number of evaluations, and batch and length may vary.
    Raises ConfigError if the model cannot be exported, and if ``out`` exists or cannot be written.
    """
    require_onnx(model, depth)
    if model.training or model.dtype != torch.float32 or model.device.type != "cpu":
        model = copy.deepcopy(model).eval().to("cpu", torch.float32)
    graph = _Logits(model, model.budget(depth=depth)).eval()
    ids = torch.zeros(2, min(8, model.config.num_positions), dtype=torch.long)
    varies = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    with new_folder(Path(out)) as folder, quiet(), torch.no_grad():
        program = torch.export.export(graph, (ids, torch.ones_like(ids)), dynamic_shapes=(varies, varies))
        torch.onnx.export(
            program,
            f=folder / "model.onnx",
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
        model.config.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        card = CARD.format(
            name=Path(out).name,
            kind=type(model).__name__,
            depth=depth,
            version=attractor.__version__,
            vocab_size=model.config.vocab_size,
            positions=model.config.num_positions,
            loss=describe_loss(depth, held_out),
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return model
