"""Other formats in and out: official checkpoints, pretrained backbones, export to Qwen3 or Llama."""

from attractor.errors import requires_extra

with requires_extra("language"):
    from attractor.interop.backbone import retrofit
    from attractor.interop.official_checkpoint import import_official
    from attractor.interop.reasoner_checkpoint import export_reasoner, import_reasoner
    from attractor.interop.stock_export import HeldOut, export, to_stock

__all__ = ["HeldOut", "export", "export_reasoner", "import_official", "import_reasoner", "retrofit", "to_stock"]
