"""A pretrained Transformer as an attractor: does its update contract, before and after training, and how does the loss
change?

    python -m benchmarks.retrofit --data TEXT        # about half an hour on one core

TEXT is a folder of ``attractor data prepare`` with 4,096 tokens. A plain Transformer is trained and saved as a stock
Qwen3. It is retrofitted with its last 1, 2 and 3 layers as attractor and evaluated untrained: at depths 0 and 1 and at
the equilibrium. The model with 3 layers is then trained in two ways, with and without a penalty on the growth of small
perturbations. The control is the plain Transformer, trained for as many more steps on the same text. The update of a
small Transformer contracts more easily than that of a large one, so all this is repeated with doubled branches in the
attractor's layers: that update does not contract.

Written to ``results/language/retrofit.json`` and ``retrofit.png``; sides that are not selected keep their earlier
results.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import Qwen3Config, Qwen3ForCausalLM

from attractor.config import change, to_dict
from attractor.data.text import PackedRows, Shards, load_tokenizer, read_held_out
from attractor.evaluation import score_text
from attractor.experiment.environment import environment
from attractor.experiment.language import train_language
from attractor.experiment.loading import LoadedLanguageModel
from attractor.files import write_json
from attractor.files.received import quiet
from attractor.gradient import spectral_radius
from attractor.interop import retrofit as retrofit_backbone
from attractor.models.language import AttractorForCausalLM, LanguageModel
from attractor.plots.style import COLOURS, GREY, new_figure, save
from attractor.progress import TrainingProgress
from attractor.recipes import LanguageRecipe, fit_to_model, language, retrofit
from benchmarks.command import run_command

OUT = Path("results/language")
LENGTH, CHARACTERS, ROWS = 128, 1_000, 8
SIDES = {  # layers of the attractor, factor on their branches, weight of the penalty
    "control": (0, 1.0, 0.0),
    "equilibrium": (3, 1.0, 0.0),
    "equilibrium and penalty": (3, 1.0, 0.3),
    "doubled, equilibrium": (3, 2.0, 0.0),
    "doubled, equilibrium and penalty": (3, 2.0, 0.3),
}


def pretrain(data: Path, folder: Path, num_steps: int, console: Console) -> dict[str, Any]:
    """Train a plain Transformer, write it to ``folder`` as a stock Qwen3, and return its recipe."""
    recipe = change(
        language("tiny", "transformer"),
        {
            "model": {
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_attention_heads": 2,
                "num_hidden_layers": 4,
                "max_position_embeddings": LENGTH,
            },
            "text": {"length": LENGTH},
            "train": {
                "num_steps": num_steps,
                "checkpoint_every": 0,
            },
        },
    )
    with tempfile.TemporaryDirectory() as run, TrainingProgress("plain", console) as progress:
        model = train_language(recipe, data, Path(run), callbacks=[progress]).model
    own = model.config
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
    )
    names += ("max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    stock = Qwen3ForCausalLM(
        Qwen3Config(
            **{name: getattr(own, name) for name in names},
            num_key_value_heads=own.num_kv_heads,
            head_dim=own.head_width,
            rope_parameters={"rope_type": "default", "rope_theta": own.rope_theta},
        )
    )
    stock.load_state_dict(model.state_dict())
    with quiet():
        stock.save_pretrained(folder)
        load_tokenizer(data).save_pretrained(folder)
    return to_dict(recipe)


def build(backbone: Path, num_attractor_layers: int, branches: float = 1.0) -> AttractorForCausalLM:
    with quiet():
        model = retrofit_backbone(
            backbone, num_attractor_layers=num_attractor_layers, tolerance=3e-3, min_evaluations=2, budget=None
        )
    with torch.no_grad():
        for layer in model.model.layers[model.model.num_backbone_layers :]:
            layer.self_attn.o_proj.weight *= branches
            layer.mlp.down_proj.weight *= branches
    return model


def evaluate_depths(model: LanguageModel, data: Path) -> dict[str, Any]:
    """Return bits per byte at each depth, the share of converged tokens, and the spectral radius."""
    tokenizer = load_tokenizer(data)
    texts = [text[:CHARACTERS] for text in read_held_out((data,), "text")]

    def score(**budget: float) -> Any:
        return score_text(model, tokenizer, texts, length=LENGTH, batch_size=32, **budget)

    if not getattr(model.config, "num_attractor_layers", 0):
        return {"bits_per_byte": {"depth 1": score().bits_per_byte}}
    solved = score()
    return {
        "bits_per_byte": {
            "depth 0": score(depth=0).bits_per_byte,
            "depth 1": score(depth=1).bits_per_byte,
            "equilibrium": solved.bits_per_byte,
        },
        "at_rest": solved.converged_fraction,
        "evaluations": solved.evaluations,
        "residual": solved.residual,
        **radii(model, data),
    }


def radii(model: Any, data: Path) -> dict[str, float]:
    """Return the mean and the largest spectral radius over held-out rows, at the end of the solve."""
    ids, positions = PackedRows(Shards(data, "val"), LENGTH).batch(0, ROWS)
    with torch.no_grad():
        output = model(ids, position_ids=positions)
    update = model.update_of(output, positions)
    found = spectral_radius(update, output.hidden, iterations=32, generator=torch.Generator().manual_seed(0))
    return {"spectral_radius": float(found.mean()), "largest_spectral_radius": float(found.max())}


def train_side(side: str, backbone: Path, data: Path, num_steps: int, console: Console) -> dict[str, Any]:
    """Train and evaluate one side."""
    num_attractor_layers, branches, penalty = SIDES[side]
    model = build(backbone, num_attractor_layers, branches)
    recipe: LanguageRecipe = change(
        fit_to_model(retrofit(), model.config),
        {
            "model": {"max_evaluations": 16},
            "text": {"contraction_penalty": penalty},
            "train": {"num_steps": num_steps, "accumulate": 1, "checkpoint_every": 0, "optimizer": {"lr": 5e-4}},
        },
    )
    with tempfile.TemporaryDirectory() as run, TrainingProgress(side, console) as progress:
        start = LoadedLanguageModel(model, load_tokenizer(data), backbone)
        trained = train_language(recipe, data, Path(run), callbacks=[progress], start=start).model
        log = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    trained.config.max_evaluations = 64
    return {
        "num_attractor_layers": num_attractor_layers,
        "branches": branches,
        "penalty": penalty,
        "recipe": to_dict(recipe),
        "seconds": log[-1]["seconds"],
        **evaluate_depths(trained, data),
        "log": [
            {name: line.get(name) for name in ("step", "loss", "spectral_radius", "growth", "evaluations", "residual")}
            for line in log
        ],
    }


def main(data: Path, sides: tuple[str, ...] = tuple(SIDES), pretraining: int = 500, num_steps: int = 200) -> None:
    """Train, retrofit, evaluate, train further, evaluate again, and write the results.

    Args:
        data: Prepared text.
        sides: Which to train.
        pretraining: Steps of the plain Transformer, of 2,048 tokens each.
        num_steps: Steps after the retrofit, of 1,024 tokens each.
    """
    torch.set_num_threads(1)
    console = Console(width=160)
    with tempfile.TemporaryDirectory() as folder:
        backbone = Path(folder) / "qwen3"
        recipe = pretrain(data, backbone, pretraining, console)
        before = {}
        for name, k, branches in (("1", 1, 1.0), ("2", 2, 1.0), ("3", 3, 1.0), ("3, doubled", 3, 2.0)):
            before[name] = evaluate_depths(build(backbone, k, branches).eval(), data)
            console.print(f"attractor layers {name}, untrained: {before[name]}")
        file = OUT / "retrofit.json"
        after = json.loads(file.read_text())["trained"] if file.exists() else {}
        for side in sides:
            after[side] = train_side(side, backbone, data, num_steps, console)
            console.print(f"{side}: { {k: v for k, v in after[side].items() if k not in ('recipe', 'log')} }")
    write_json(
        file,
        {
            "command": "python -m benchmarks.retrofit --data TEXT",
            "environment": environment(),
            "pretraining": recipe,
            "untrained": before,
            "trained": after,
        },
    )
    if "control" in after:
        draw(before, after, OUT / "retrofit.png")


def draw(before: dict[str, Any], after: dict[str, Any], file: Path) -> None:
    """Over steps: left, the spectral radius; right, the training loss above that of the control on the same text."""
    figure, (left, right) = new_figure(2)
    control = {line["step"]: line["loss"] for line in after["control"]["log"]}
    for i, (side, result) in enumerate((side, result) for side, result in after.items() if side != "control"):
        steps = [line["step"] for line in result["log"]]
        start = before["3" if result["branches"] == 1 else "3, doubled"]["spectral_radius"]
        radius = [start, *(line["spectral_radius"] for line in result["log"])]
        left.plot([0, *steps], radius, color=COLOURS[i], label=side)
        right.plot(steps, [line["loss"] - control[line["step"]] for line in result["log"]], color=COLOURS[i])
    for axes, level in ((left, 1), (right, 0)):
        axes.axhline(level, color=GREY, linewidth=0.8)
    left.set(xlabel="training step", ylabel="spectral radius where the solve ends", ylim=(0, 1.05))
    right.set(xlabel="training step", ylabel="loss, penalty included, above the\ncontrol's (nats per token)")
    left.legend(fontsize=8)
    save(figure, file)


if __name__ == "__main__":
    run_command(main)
