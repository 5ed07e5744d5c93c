"""Other formats in and out: official checkpoints, pretrained backbones, export to Qwen3 or Llama."""

from attractor.errors import requires_extra

with requires_extra("language"):
    from attractor.interop.backbone import retrofit
    from attractor.interop.official_checkpoint import import_official
    from attractor.interop.onnx_export import export_onnx
    from attractor.interop.stock_export import HeldOut, export, to_stock
    from attractor.interop.trm_checkpoint import import_trm

__all__ = ["HeldOut", "export", "export_onnx", "import_official", "import_trm", "retrofit", "to_stock"]
