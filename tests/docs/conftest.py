"""Files that blocks of the documentation read: text, tokens, a trained language model, a stock Qwen3."""

import random
from pathlib import Path

import pytest
import torch

import attractor
from attractor.experiment.prepare import prepare_text

TEXT = "the sea was wide and a ship sailed over the bay while old birds sang in every quiet town by the shore"
TINY = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_attention_heads": 2,
    "model.num_hidden_layers": 3,
    "model.max_position_embeddings": 64,
    "text.length": 64,
    "text.batch_size": 4,
    "train.num_steps": 2,
}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``texts``, ``tokens``, ``runs/tiny``, ``tiny-model`` (its checkpoint) and ``qwen3``."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder, generator = tmp_path_factory.mktemp("documentation"), random.Random(0)
    (folder / "texts").mkdir()
    for number in range(60):
        text = " ".join(generator.choice(TEXT.split()) for _ in range(200))
        (folder / "texts" / f"{number}.txt").write_text(text)
    prepare_text([folder / "texts"], folder / "tokens", vocab_size=300, val_fraction=0.1)
    recipe = attractor.recipes.override(attractor.recipes.get("language/tiny"), TINY)
    trained = attractor.train(recipe, folder / "tokens", folder / "runs" / "tiny", progress=False)
    (folder / "tiny-model").symlink_to(trained.path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        eos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "qwen3")
    return folder
