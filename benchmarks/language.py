"""The attractor and its baselines at equal tokens, width, depth and weights: what does solving buy, and what does it cost?

    python -m benchmarks.language run --data TEXT --bundle EVAL      # every side and seed, about an hour on two cores
    python -m benchmarks.language run --data TEXT --sides attractor --seeds 0
    python -m benchmarks.memory sides                                # peak memory of a training step
    python -m benchmarks.language show                               # table and curves of what is there

TEXT is a folder of ``attractor data prepare`` with 8,192 tokens (5.2 million weights, most of the rest of the
comparison's cost being the head), EVAL an evaluation bundle with LAMBADA in it. Sides:

attractor     3 layers propose, 1 iterates until it converges
transformer   the same 4 layers once: equal depth, width, tokens and, but for the gates, equal weights
deeper        6 layers once: the training compute of an attractor that makes 6 evaluations a step (the table says how
many it made) looped        2 of 4 layers in a loop (Parcae), 4 iterations on average, gradients through 2
deq           all 4 layers an equilibrium from zero, no proposal
deq-untied    the same with a head of its own

Every finished run is written to ``results/language`` at once. Held-out documents are cut to their first 5,000
characters. Runs may go side by side; seconds are therefore only those of one run, and the FLOPs are what compares cost.
Those of inference take each token's own evaluations, which is what work on moving tokens alone would cost; the dense
solve costs the slowest token's.
"""

import json
import math
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from attractor.config import change, to_dict
from attractor.data.text import read_held_out
from attractor.evaluation import lambada, score_text
from attractor.experiment.environment import environment
from attractor.experiment.language import train_language
from attractor.experiment.loading import load_language_model
from attractor.files import write_json
from attractor.plots.style import COLOURS, new_figure, save, use_log_scale
from attractor.progress import TrainingProgress
from attractor.recipes import LanguageRecipe, language
from attractor.training import find_checkpoint
from benchmarks import with_spread

OUT = Path("results/language")
SIDES = ("attractor", "transformer", "deeper", "looped", "deq", "deq-untied")
DEPTHS = (0, 1, 2, 4, 8, None)
CHARACTERS = 5_000
LAMBADA_ITEMS = 1000


def recipe(side: str, seed: int, num_steps: int) -> LanguageRecipe:
    """Return the run of one side."""
    family = {"deeper": "transformer", "deq-untied": "deq"}.get(side, side)
    found = language("tiny", family)
    changes: dict[str, dict[str, Any]] = {
        "deeper": {"num_hidden_layers": 6},
        "looped": {"mean_recurrence": 4, "tracked_recurrence": 2},
        "deq-untied": {"tie_word_embeddings": False},
    }
    found = change(found, {"model": changes.get(side, {})})
    return replace(
        found,
        text=replace(found.text, seed=seed),
        train=replace(found.train, num_steps=num_steps, seed=seed, checkpoint_every=0),
    )


def one(side: str, seed: int, data: Path, bundle: Path, num_steps: int, console: Console) -> None:
    """Train and evaluate one side with one seed and write ``results/language/SIDE-SEED.json``."""
    wanted = recipe(side, seed, num_steps)
    with tempfile.TemporaryDirectory() as folder, TrainingProgress(f"{side} {seed}", console) as progress:
        train_language(wanted, data, Path(folder), callbacks=[progress])
        log = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        loaded = load_language_model(find_checkpoint(Path(folder)))
        model, tokenizer = loaded.model, loaded.tokenizer
    texts = [text[:CHARACTERS] for text in read_held_out((data,), "text")]
    curve = []
    solves = side in ("attractor", "looped")
    for depth in DEPTHS if solves else (None,):
        score = score_text(model, tokenizer, texts, length=wanted.text.length, batch_size=32, depth=depth)
        curve.append(
            {
                "depth": depth,
                "bits_per_byte": score.bits_per_byte,
                "evaluations": score.evaluations,
                "residual": None if score.residual is None or math.isnan(score.residual) else score.residual,
                "final": score.converged_fraction,
            }
        )
        console.print(f"{side} {seed}: {curve[-1]}")
    words = lambada(model, tokenizer, bundle, limit=LAMBADA_ITEMS, batch_size=32)
    later = log[len(log) // 10 :]
    calls = statistics.mean(line.get("calls", 1.0) for line in later)
    config: Any = model
    result = {
        "command": f"python -m benchmarks.language run --sides {side} --seeds {seed} --num-steps {num_steps}",
        "environment": environment(),
        "recipe": to_dict(wanted),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "tokens": log[-1]["tokens"],
        "seconds": log[-1]["seconds"],
        "calls_in_training": calls,
        "training_flops_per_token": config.flops_per_token(wanted.text.length, calls, training=True),
        "flops_per_token": config.flops_per_token(wanted.text.length, curve[-1]["evaluations"] or 1.0),
        "bits_per_byte": curve[-1]["bits_per_byte"],
        "curve": curve,
        "lambada_log_likelihood": words.log_likelihood,
        "lambada_accuracy": words.accuracy,
        "log": [
            {k: line.get(k) for k in ("step", "loss", "evaluations", "calls", "residual", "proposal_distance")}
            for line in log
        ],
    }
    write_json(OUT / f"{side}-{seed}.json", result)


def run(
    data: Path,
    bundle: Path,
    sides: tuple[str, ...] = SIDES,
    seeds: tuple[int, ...] = (0, 1, 2),
    num_steps: int = 300,
    threads: int | None = None,
) -> None:
    """Train and evaluate, one after the other.

    Args:
        data: Prepared text.
        bundle: Evaluation bundle with LAMBADA.
        sides: Which to run.
        seeds: Of weights and of the order of the text.
        num_steps: Of 4,096 tokens.
        threads: Of this process.
    """
    if threads:
        torch.set_num_threads(threads)
    OUT.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for side in sides:
            one(side, seed, data, bundle, num_steps, Console(width=160))


def show() -> None:
    """Print means over seeds with their spread, and draw loss against depth; write summary.json and internalisation.png."""
    console = Console(width=170)
    view = Table(title="equal tokens; mean ± half the range over seeds", title_justify="left")
    columns = (
        "side",
        "seeds",
        "weights",
        "bits/byte",
        "LAMBADA nats/word",
        "evaluations",
        "MFLOP/token",
        "training",
        "s",
        "MB",
    )
    for column in columns:
        view.add_column(column, justify="right", no_wrap=True)
    rows = []
    memory_file = OUT / "sides-memory.json"
    memory = json.loads(memory_file.read_text())["rows"] if memory_file.is_file() else {}
    curves: dict[str, dict[Any, list[float]]] = {}
    for side in SIDES:
        runs = [json.loads(file.read_text()) for file in sorted(OUT.glob(f"{side}-[0-9].json"))]
        if not runs:
            continue
        row: dict[str, Any] = {"side": side, "seeds": len(runs), "num_parameters": runs[0]["num_parameters"]}
        for name in (
            "bits_per_byte",
            "lambada_log_likelihood",
            "lambada_accuracy",
            "flops_per_token",
            "training_flops_per_token",
            "calls_in_training",
            "seconds",
        ):
            row[name] = _spread([r[name] for r in runs])
        row["evaluations"] = _spread([r["curve"][-1]["evaluations"] or 1.0 for r in runs])
        rows.append(row)
        for r in runs:
            for point in r["curve"] if len(r["curve"]) > 1 else ():
                curves.setdefault(side, {}).setdefault(point["depth"], []).append(point["bits_per_byte"])
        view.add_row(
            side,
            str(len(runs)),
            f"{row['num_parameters'] / 1e6:.2f}M",
            _short(row["bits_per_byte"], 4),
            _short(row["lambada_log_likelihood"], 2),
            _short(row["evaluations"], 1),
            _short(row["flops_per_token"], 1, 1e6),
            _short(row["training_flops_per_token"], 1, 1e6),
            f"{row['seconds']['mean']:.0f}",
            f"{memory[side]['peak_mb'] - memory[side]['built_mb']:.0f}" if side in memory else "",
        )
    console.print(view)
    internal = {side: {str(d): _spread(values) for d, values in points.items()} for side, points in curves.items()}
    write_json(
        OUT / "summary.json", {"command": "python -m benchmarks.language show", "rows": rows, "by_depth": internal}
    )
    _draw(internal, OUT / "internalisation.png")


def _spread(values: list[float]) -> dict[str, float | None]:
    half_range = (max(values) - min(values)) / 2 if len(values) > 1 else None
    return {"mean": statistics.mean(values), "half_range": half_range}


def _short(value: dict[str, Any], digits: int, unit: float = 1.0) -> str:
    spread = value["half_range"]
    return with_spread(value["mean"] / unit, None if spread is None else spread / unit, digits)


def _draw(curves: dict[str, dict[str, dict[str, Any]]], file: Path) -> None:
    """Loss by depth on the left; on the right, evaluations, residual and distance to the proposal while training."""
    figure, (left, middle, right) = new_figure(3)
    names = [str(d) for d in DEPTHS]
    for number, (side, points) in enumerate(curves.items()):
        here = [name for name in names if name in points]
        label = side
        if side == "looped":  # decodes an untouched zero state there, far above the rest of the picture
            here.remove("0")
            label = f"looped (depth 0: {points['0']['mean']:.2f})"
        left.errorbar(
            [names.index(n) + 0.12 * number for n in here],  # so that the bars do not overlap
            [points[n]["mean"] for n in here],
            [points[n]["half_range"] or 0 for n in here],
            marker="os^D"[number],
            markersize=4,
            capsize=3,
            color=COLOURS[number],
            label=label,
        )
        left.set_xticks(range(len(names)), ["solved" if n == "None" else n for n in names])
        for seed, seed_file in enumerate(sorted(OUT.glob(f"{side}-[0-9].json"))):
            log = json.loads(seed_file.read_text())["log"]
            steps = [line["step"] for line in log]
            label = side if seed == 0 else None
            middle.plot(steps, [line["evaluations"] for line in log], color=COLOURS[number], alpha=0.7, label=label)
            if side == "attractor":
                for i, (name, text) in enumerate(
                    (("residual", "residual"), ("proposal_distance", "proposal distance"))
                ):
                    values, label = [line[name] for line in log], text if seed == 0 else None
                    right.plot(steps, values, color=COLOURS[2 + i], linestyle="-:"[i], alpha=0.7, label=label)
    left.set(xlabel="depth (evaluations)", ylabel="bits per byte of held-out text", title="loss by depth")
    middle.set(xlabel="training step", ylabel="evaluations", title="evaluations in training")
    right.set(xlabel="training step", ylabel="relative to the norm", title="attractor in training")
    use_log_scale(right)
    for axes in (left, middle, right):
        axes.legend(fontsize=8)
    save(figure, file)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "show": show})
