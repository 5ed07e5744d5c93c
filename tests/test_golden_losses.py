"""Twenty training steps of every recipe in a small form give the stored losses, so that a change of code changes no training.

``python -m tests.test_golden_losses`` stores them again, after a change that is meant.
"""

import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import attractor
from attractor import recipes
from attractor.config import change
from attractor.experiment.language import train_language
from attractor.objectives import DeepSupervision
from attractor.recipes import LANGUAGE_FAMILIES, REASONER_FAMILIES

STORED = Path(__file__).with_name("golden_losses.json")
NUM_STEPS = 20
NAMES = [
    *(f"language/tiny-{family}".removesuffix("-attractor") for family in LANGUAGE_FAMILIES),
    *(f"sudoku/6x6-{family}".removesuffix("-attractor") for family in REASONER_FAMILIES),
    "maze",
]
TEXT = "".join(f"{i} and {i * i % 97} make {i + i * i % 97}. " for i in range(4000))


def small(name: str) -> Any:
    """Return the recipe with the smallest model that still has every part of it."""
    train = {"num_steps": NUM_STEPS, "seconds": None, "precision": "fp32", "log_every": 1, "checkpoint_every": 0}
    recipe = recipes.get(name)
    if name.startswith("language/"):
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "max_position_embeddings": 32}
        return change(recipe, {"model": sizes, "text": {"batch_size": 4, "length": 32}, "train": train})
    return change(recipe, {"data": {"num_puzzles": 32}, "supervision": {"batch_size": 8}, "train": train})


def losses(name: str, folder: Path) -> list[float]:
    """Train, and return the loss of every step."""
    torch.manual_seed(0)
    recipe = small(name)
    if name.startswith("language/"):
        text, data = folder / "text.txt", folder / "tokens"
        text.write_text(TEXT)
        attractor.prepare_text([text], data, vocab_size=300)
        train_language(recipe, data, folder / "run")
    else:
        attractor.train(recipe, out=folder / "run", progress=False)
    return [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_training_gives_the_stored_losses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit on the processor and the version of PyTorch that stored them, elsewhere nearly."""
    if name != "sudoku/6x6":  # one recipe suffices to see that held-out puzzles change no loss; they take long
        monkeypatch.setattr(DeepSupervision, "evaluate", lambda *_: {})
    stored = json.loads(STORED.read_text())
    found = losses(name, tmp_path)
    assert found == pytest.approx(stored["losses"][name], rel=0 if stored["environment"] == environment() else 2e-2)


def environment() -> list[str]:
    return [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), _processor()]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = losses(name, Path(folder))
    STORED.write_text(json.dumps({"environment": environment(), "losses": found}, indent=1) + "\n")
