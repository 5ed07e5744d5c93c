"""Other formats in and out: published checkpoints, pretrained backbones, export to Qwen3 or Llama."""

import importlib
from typing import TYPE_CHECKING, Any

from attractor.errors import requires_extra

if TYPE_CHECKING:
    from attractor.interop.backbone import retrofit
    from attractor.interop.official_checkpoint import import_official
    from attractor.interop.onnx_export import export_onnx
    from attractor.interop.reasoner_checkpoint import export_reasoner, import_reasoner
    from attractor.interop.stock_export import HeldOut, export, to_stock

_FILES = {"retrofit": "backbone", "import_official": "official_checkpoint", "export_onnx": "onnx_export"}
_FILES |= dict.fromkeys(("HeldOut", "export", "to_stock"), "stock_export")
_FILES |= dict.fromkeys(("export_reasoner", "import_reasoner"), "reasoner_checkpoint")


def __getattr__(name: str) -> Any:
    """Import a file when it is used, because those for language models need ``transformers``."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with requires_extra("train" if _FILES[name] == "reasoner_checkpoint" else "language"):
        return getattr(importlib.import_module(f"attractor.interop.{_FILES[name]}"), name)


__all__ = [
    "HeldOut",
    "export",
    "export_onnx",
    "export_reasoner",
    "import_official",
    "import_reasoner",
    "retrofit",
    "to_stock",
]
