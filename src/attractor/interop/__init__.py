"""Other formats in and out: published checkpoints, pretrained backbones, export to Qwen3 or Llama."""

import importlib
from typing import TYPE_CHECKING, Any

from attractor.errors import requires_extra
from attractor.interop.reasoner_checkpoint import export_reasoner, import_reasoner

if TYPE_CHECKING:
    from attractor.interop.backbone import retrofit
    from attractor.interop.official_checkpoint import import_official
    from attractor.interop.stock_export import HeldOut, export, to_stock

_FILES = {"retrofit": "backbone", "import_official": "official_checkpoint"}
_FILES |= dict.fromkeys(("HeldOut", "export", "to_stock"), "stock_export")


def __getattr__(name: str) -> Any:
    """Import what is for language models when it is used, because it needs ``transformers``."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with requires_extra("language"):
        return getattr(importlib.import_module(f"attractor.interop.{_FILES[name]}"), name)


__all__ = [
    "HeldOut",
    "export",
    "export_reasoner",
    "import_official",
    "import_reasoner",
    "retrofit",
    "to_stock",
]
