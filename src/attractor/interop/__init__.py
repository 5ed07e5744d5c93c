"""Other formats in and out: the authors' checkpoints, pretrained backbones, stock ``transformers`` folders."""

from attractor.errors import requires_extra

with requires_extra("language"):
    import transformers  # noqa: F401
