"""Every conversion keeps how a model generates: all end tokens, sampling, special tokens, chat template."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

import attractor
from attractor.data.text import train_tokenizer
from attractor.errors import ConfigError
from attractor.experiment.conversion import export, import_official, retrofit
from attractor.interop import to_stock
from attractor.models.language import AttractorConfig, AttractorForCausalLM

OFFICIAL = Path(__file__).parent / "official_tiny"
TEMPLATE = "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
KEPT = {
    "eos_token_id": [2, 7],
    "bos_token_id": 1,
    "pad_token_id": 3,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "repetition_penalty": 1.05,
    "max_new_tokens": 5,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    found = train_tokenizer(["the sea and the moon and the night"] * 3, 265)
    found.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    found.chat_template = TEMPLATE
    found.save_pretrained(folder := tmp_path_factory.mktemp("tokenizer"))
    return AutoTokenizer.from_pretrained(folder, padding_side="left", model_max_length=64)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
            eos_token_id=2,
        )
    )
    model.generation_config = GenerationConfig(**KEPT)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def kept(folder: Path) -> dict:
    config = AutoModelForCausalLM.from_pretrained(folder).generation_config
    return {name: getattr(config, name) for name in KEPT}


def require_same_tokenizer(folder: Path, expected) -> None:
    found = AutoTokenizer.from_pretrained(folder)
    assert found.get_vocab() == expected.get_vocab()
    assert found.all_special_tokens == expected.all_special_tokens
    for name in ("chat_template", "padding_side", "model_max_length"):
        assert getattr(found, name) == getattr(expected, name)
    chat = [{"role": "user", "content": "the sea"}]
    assert found.apply_chat_template(chat, tokenize=False) == expected.apply_chat_template(chat, tokenize=False)


def test_retrofit_and_export_keep_everything(backbone, tokenizer, tmp_path) -> None:
    """There and back; the budget of the solve is left out of a stock model, and the card says so."""
    retrofit(backbone, tmp_path / "ours")
    assert kept(tmp_path / "ours") == KEPT
    require_same_tokenizer(tmp_path / "ours", tokenizer)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    model.config.budget = {"tolerance": 1e-2}
    model.save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    assert kept(tmp_path / "again") == KEPT

    export(tmp_path / "again", tmp_path / "stock", depth=1)
    assert kept(tmp_path / "stock") == KEPT
    require_same_tokenizer(tmp_path / "stock", tokenizer)
    written = json.loads((tmp_path / "stock" / "config.json").read_text())
    assert "budget" not in written
    assert written["eos_token_id"] == [2, 7]
    assert "budget {'tolerance': 0.01} is left out" in (tmp_path / "stock" / "README.md").read_text()


def test_a_retrofitted_model_ends_at_every_end_token(backbone) -> None:
    """Also at the second one."""
    model = attractor.retrofit(backbone)
    ids = torch.tensor([[5, 6]])
    free = model.generate(ids, do_sample=False, eos_token_id=None, max_new_tokens=3)
    model.generation_config.eos_token_id = [299, int(free[0, 2])]
    assert model.generate(ids, do_sample=False).shape[1] == 3


@pytest.mark.parametrize("has_config", [False, True])
def test_an_official_checkpoint_keeps_its_settings_and_its_tokenizer(has_config: bool, tokenizer, tmp_path) -> None:
    """Without a generation config, the tokenizer says where texts end."""
    shutil.copytree(OFFICIAL, tmp_path / "official")
    tokenizer.save_pretrained(tmp_path / "official")
    theirs = json.loads((OFFICIAL / "config.json").read_text())  # the tokenizer writes no config.json
    (tmp_path / "official" / "config.json").write_text(json.dumps(theirs))
    if has_config:
        GenerationConfig(**KEPT).save_pretrained(tmp_path / "official")
    import_official(tmp_path / "official", tmp_path / "ours")
    require_same_tokenizer(tmp_path / "ours", tokenizer)
    found = kept(tmp_path / "ours")
    if has_config:
        assert found == KEPT
    else:
        assert found["eos_token_id"] == tokenizer.eos_token_id


def test_changed_weights_are_not_exported() -> None:
    """Adapters, quantized layers and a head with a bias have no place in a stock model."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    model = AttractorForCausalLM(AttractorConfig(**sizes, num_hidden_layers=2, tie_word_embeddings=False))
    model.lm_head = torch.nn.Linear(32, 97)
    with pytest.raises(ConfigError, match=r"lm_head\.bias"):
        to_stock(model, 1)


def test_peft_knows_which_layers_to_adapt() -> None:
    """Without target_modules, as for a stock model."""
    peft = pytest.importorskip("peft")
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    for config in (peft.LoraConfig(task_type="CAUSAL_LM"), peft.IA3Config(task_type="CAUSAL_LM")):
        tuned = peft.get_peft_model(AttractorForCausalLM(AttractorConfig(**sizes, num_hidden_layers=2)), config)
        assert any("v_proj" in name for name, p in tuned.named_parameters() if p.requires_grad)
