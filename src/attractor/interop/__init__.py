"""Other formats in and out: the authors' checkpoints, pretrained backbones, stock ``transformers`` folders."""
