"""Where should an equilibrium help? Generated tasks in which the answer needs a known number of steps in sequence.

    python -m benchmarks.depth run                                # every task, side and seed; minutes each
    python -m benchmarks.depth run --tasks pointers --seeds 0
    python -m benchmarks.depth show                               # tables and pictures of what is there

pointers   12 symbols, each with the symbol that it points to, then questions: where does the chain from this symbol
           end? The difficulty is the number of hops, in training at most 4, in the test at most 8.
group      The word problem of S5: the product of all permutations so far. The difficulty is the number of factors, in
           training at most 16, in the test at most 32.
addition   Two numbers, digit by digit from the last one, and after each pair the digit of their sum. The difficulty is
           how far the carry has come. In training 8 digits, in the test 16.
sudoku     A 4 × 4 Sudoku as text, then every cell again. The difficulty is the round in which the digit follows from its
           row, column and box. In training 7 blanks, in the test 11.
maze       A 9 × 9 maze as text, then every cell again: is it on the path from S to G? The difficulty is the length of
           the path, in training at most 12, in the test at most 24.

Answers are not in the input, so that all steps are the network's. Sides: an attractor of 1 + 2 layers, the same 3
layers once, 8 layers once (about the attractor's training FLOPs at 7 evaluations), 1 + 2 layers in a loop, and a deep
equilibrium model of 3 layers, in the recipes of ``language/tiny`` at width 64. Every run is written to
``results/depth`` at once.
"""

import itertools
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from attractor.config import change, to_dict
from attractor.errors import DivergedError
from attractor.experiment.environment import environment
from attractor.files import write_json, write_text
from attractor.objectives import NextToken
from attractor.plots.style import COLOURS, MARKERS, new_figure, save
from attractor.progress import TrainingProgress
from attractor.recipes import language
from attractor.training import train
from benchmarks import changed_setting, with_spread
from benchmarks.command import run_command
from benchmarks.depth_tasks import IGNORED, TASKS

OUT = Path("results/depth")
SHOWN = 30  # answers of a difficulty, or more, for a point in a picture
SIDES: dict[str, tuple[str, dict[str, int]]] = {
    "attractor": ("attractor", {"num_hidden_layers": 3, "num_attractor_layers": 2}),
    "plain": ("transformer", {"num_hidden_layers": 3}),
    "deeper": ("transformer", {"num_hidden_layers": 8}),
    "looped": ("looped", {"num_hidden_layers": 3, "num_core_layers": 2, "num_coda_layers": 0}),
    "deq": ("deq", {"num_hidden_layers": 3, "num_attractor_layers": 3}),
}


VOCABULARY = 128


class Rows:
    """Batches of a task, the same for the same seed and place. A last token is added, because targets are the next tokens."""

    def __init__(self, task: str, seed: int) -> None:
        (self._make, self._limit, *_), self._seed = TASKS[task], seed
        self.length = len(self.batch(0, 1)[0][0])

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens, answers, _ = self._make(np.random.default_rng((self._seed, first)), num, self._limit)
        end = np.full((num, 1), VOCABULARY - 1)
        ids = torch.from_numpy(np.concatenate([tokens, end], axis=1))
        labels = torch.from_numpy(np.concatenate([np.full((num, 1), IGNORED), answers], axis=1))
        return ids, torch.arange(ids.shape[1]).expand(num, -1), labels


@torch.no_grad()
def evaluate(model: Any, task: str, num: int = 400) -> dict[str, Any]:
    """Return counts, accuracy and evaluations by difficulty, for lengths as in training and beyond."""
    make, *limits, _ = TASKS[task]
    found: dict[str, Any] = {}
    for name, limit in zip(("as trained", "longer"), limits, strict=True):
        tokens, answers, difficulty = make(np.random.default_rng((987, limit)), num, limit)
        output = model(torch.from_numpy(tokens))
        right = output.logits.argmax(dim=-1).numpy() == answers
        made = np.ones_like(answers) if output.solution is None else output.solution.evaluations.numpy()
        asked = answers != IGNORED
        by: dict[str, Any] = defaultdict(dict)
        for level in np.unique(difficulty[asked]):
            at = asked & (difficulty == level)
            by[str(level)] = {"num": int(at.sum()), "accuracy": right[at].mean(), "evaluations": made[at].mean()}
        found[name] = {"accuracy": right[asked].mean(), "evaluations": made[asked].mean(), "by_difficulty": by}
    return json.loads(json.dumps(found, default=float))


def run(
    tasks: tuple[Literal["pointers", "group", "addition", "sudoku", "maze"], ...] = tuple(TASKS),
    sides: tuple[Literal["attractor", "plain", "deeper", "looped", "deq"], ...] = tuple(SIDES),
    seeds: tuple[int, ...] = (0, 1, 2),
    num_steps: int = 400,
    threads: int | None = None,
) -> None:
    """Train and evaluate what is not stored yet.

    Args:
        tasks: Which to learn.
        sides: Models.
        seeds: Of weights and examples.
        num_steps: Of 16 rows.
        threads: Of this process.
    """
    if threads:
        torch.set_num_threads(threads)
    for seed, task, side in itertools.product(seeds, tasks, sides):
        family, layers = SIDES[side]
        rows, file = Rows(task, seed), OUT / f"{task}-{side}-{seed}.json"
        shape = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 2, "vocab_size": VOCABULARY}
        training = {"num_steps": num_steps, "precision": "fp32", "seed": seed, "checkpoint_every": 0}
        optimizer = {"lr": 3e-3, "weight_decay": 0.1, "muon_pattern": ""}  # AdamW, which suits small networks
        settings: dict[str, Any] = {"model": shape | layers, "train": training | {"optimizer": optimizer}}
        recipe: Any = change(language("tiny", family), settings | {"text": {"batch_size": 16, "length": rows.length}})
        stored = json.loads(json.dumps(to_dict(recipe)))  # before a model is made of it, which completes its settings
        if file.is_file():
            if not (why := changed_setting(json.loads(file.read_text())["recipe"], stored, recipe)):
                continue
            print(f"{file.stem}: trained again; {why}")
        result: dict[str, Any] = {
            "command": f"python -m benchmarks.depth run --tasks {task} --sides {side} --seeds {seed} --num-steps {num_steps}",
            "environment": environment(),
            "recipe": stored,
        }
        try:
            model, log = _train(f"{task} {side} {seed}", recipe, rows)
        except DivergedError as error:  # a result too: the other sides go on
            result["diverged"] = says = str(error)
        else:
            calls = statistics.mean(line.get("calls", 1.0) for line in log[len(log) // 10 :])
            flops = model.flops_per_token(rows.length, calls, training=True)
            result |= {"num_parameters": sum(p.numel() for p in model.parameters()), "calls": calls}
            result |= {"training_flops_per_token": flops, "loss": log[-1]["loss"], **evaluate(model.eval(), task)}
            says = ", ".join(f"{name} {100 * result[name]['accuracy']:.1f} %" for name in ("as trained", "longer"))
        OUT.mkdir(parents=True, exist_ok=True)
        write_json(file, result)
        print(f"{task} {side} {seed}: {says}", flush=True)


def _train(name: str, recipe: Any, rows: Rows) -> tuple[Any, list[dict[str, Any]]]:
    """Return the trained model, and the log."""
    torch.manual_seed(recipe.train.seed)
    model: Any = AutoModelForCausalLM.from_config(recipe.model)
    with tempfile.TemporaryDirectory() as folder, TrainingProgress(name) as bar:
        config = change(recipe.train, {"optimizer": to_dict(recipe.optimizer)})
        loop: dict[str, Any] = {"out": Path(folder), "metadata": {"kind": "depth"}, "callbacks": [bar]}
        model = train(model, NextToken(rows, recipe.text), config, **loop)
        return model, [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def show() -> None:
    """Write a table and pictures of accuracy and evaluations by difficulty: summary.md and TASK.png."""
    lines = [
        "| task | side | seeds | right, %, as trained | longer | evaluations | longer | MFLOP per token in training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, (_, limit, _, what) in TASKS.items():
        figure, axes = new_figure(2)
        for number, side in enumerate(SIDES):
            stored = [json.loads(file.read_text()) for file in sorted(OUT.glob(f"{task}-{side}-[0-9].json"))]
            runs = [run for run in stored if "diverged" not in run]
            if len(stored) > len(runs):
                lines.append(f"| {task} | {side} | {len(stored) - len(runs)} | diverged | | | | |")
            if not runs:
                continue
            cells = []
            for column, digits, factor in (("accuracy", 1, 100), ("evaluations", 1, 1)):
                for part in ("as trained", "longer"):
                    values = [factor * r[part][column] for r in runs]
                    spread = (max(values) - min(values)) / 2 if len(values) > 1 else None
                    cells.append(with_spread(statistics.mean(values), spread, digits))
            flops = statistics.mean(r["training_flops_per_token"] for r in runs) / 1e6
            lines.append(f"| {task} | {side} | {len(runs)} | {' | '.join(cells)} | {flops:.2f} |")
            for which, found in enumerate(runs):
                by = {d: point for d, point in found["longer"]["by_difficulty"].items() if point["num"] >= SHOWN}
                style: dict[str, Any] = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 3}
                for each, column, factor in ((axes[0], "accuracy", 100), (axes[1], "evaluations", 1)):
                    y = [factor * point[column] for point in by.values()]
                    each.plot([int(d) for d in by], y, label=None if which else side, alpha=0.8, **style)
        if axes[0].lines:
            last = (
                limit if task in ("pointers", "group", "maze") else None
            )  # otherwise the limit is not of the difficulty
            for each, label in zip(axes, ("right (%)", "evaluations"), strict=True):
                each.set(xlabel=what, ylabel=label)
                if last:
                    each.axvline(last + 0.5, color="black", linestyle=":", linewidth=1)
            axes[0].legend(fontsize=8)
            axes[0].set(
                title=f"{task}: longer than in training" + (", right of the line" if last else ""), ylim=(-4, 104)
            )
            save(figure, OUT / f"{task}.png")
    write_text(OUT / "summary.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_command(run, show)
