"""Conversations, chat templates and a small model that knows them, for tests."""

import json
from pathlib import Path

import torch
from tests.small_models import SIZES, randomised

from attractor.data.text import train_tokenizer
from attractor.models.language import AttractorConfig, AttractorForCausalLM

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As that of Qwen3 it shows reasoning in the last answer only.
FORGETFUL = CHATML.replace("m['content'] +", "(m['content'] if loop.last else m['content'].split('</t>')[-1]) +")
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "the",
    "dog",
    "ran",
    "to",
    "ten",
    "hens",
    "in",
    "the",
    "old",
    "den",
]


def conversations(num: int = 12) -> list[dict]:
    """Return short conversations of one or two turns."""
    found = []
    for i in range(num):
        words = [WORDS[(i * 5 + j) % len(WORDS)] for j in range(4)]
        turn = [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": " ".join(words[::-1])}]
        found.append({"messages": turn * (1 + i % 2)})
    return found


def write_conversations(file: Path, records: list) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def chat_tokenizer(template: str | None = CHATML):
    """Return a tokenizer of words and of the two tokens of ChatML."""
    tokenizer = train_tokenizer([" ".join(WORDS * 20) + " user assistant system"], 280)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def chat_checkpoint(folder: Path, template: str | None = CHATML) -> Path:
    """Write a small random model whose tokenizer has a chat template."""
    torch.manual_seed(0)
    tokenizer = chat_tokenizer(template)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = AttractorForCausalLM(AttractorConfig(**SIZES, **special, max_evaluations=8, num_attractor_layers=1))
    randomised(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
