"""Exchange with others: the paper authors' checkpoints in, stock ``transformers`` folders out, our models for Auto classes."""
