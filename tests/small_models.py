"""Sizes and weights of the small language models that tests share."""

import torch
from torch import nn

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}


def randomised(model: nn.Module) -> nn.Module:
    """Randomise the weights; at initialisation the residual branches are zero."""
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.15)
    return model.eval()
