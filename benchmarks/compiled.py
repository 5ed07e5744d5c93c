"""How much compiling a language model's layers speeds up training: the recipe ``language/tiny``, eager and compiled.

    python -m benchmarks.compiled [--batch 8] [--evaluations 6] [--repeats 20] [--threads 1] [--device cpu]

A step is forward with its solve, backward, clipping and the recipe's optimiser. Both sides have the same weights and
tokens and make the same fixed number of evaluations. They take turns in one process, in fp32 and in bf16, so that other
load on the machine affects both. Medians and ratios, of wall-clock and of CPU time, are printed and written to
``results/scale/compiled.json``. After the warm-up nothing may be compiled again.
"""

import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from attractor.config import change
from attractor.experiment.environment import environment
from attractor.files import write_json
from attractor.nn import compile_blocks
from attractor.recipes import LanguageRecipe, language
from attractor.training import PRECISIONS
from benchmarks.command import run_command

OUT = Path("results/scale/compiled.json")
WARM_UP = 2  # the first step compiles, the second shows that nothing else has to be compiled


class Side:
    """A model in training, eager or compiled."""

    def __init__(self, model: Any, recipe: LanguageRecipe, precision: str) -> None:
        self.model, self.precision = model, precision
        self.optimizers, self.clip = recipe.optimizer.build(model), recipe.train.optimizer.clip
        self.seconds: list[dict[str, float]] = []  # per step

    def step(self, tokens: Tensor) -> float:
        """Make one training step, record its time in seconds and return the loss."""
        start = clocks(tokens.device)
        dtype = PRECISIONS[self.precision]
        with torch.autocast(tokens.device.type, dtype, enabled=self.precision != "fp32"):
            loss = self.model(tokens, labels=tokens, return_logits=False).loss
        loss.backward()
        gradients_done = clocks(tokens.device)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad()
        done = clocks(tokens.device)
        self.seconds.append(
            {clock: done[clock] - start[clock] for clock in done}
            | {f"{clock}, without the optimiser": gradients_done[clock] - start[clock] for clock in done}
        )
        return loss.item()


def clocks(device: torch.device) -> dict[str, float]:
    """Return wall-clock and CPU time once the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {"wall": time.perf_counter(), "processor": time.process_time()}


def measure(recipe: LanguageRecipe, precision: str, tokens: Tensor, repeats: int) -> dict[str, Any]:
    """Return the milliseconds per step of both sides, and the speed-up."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(recipe.model).to(tokens.device).train()
    compiled = copy.deepcopy(model)
    compile_blocks(compiled)
    sides = {"eager": Side(model, recipe, precision), "compiled": Side(compiled, recipe, precision)}
    graphs_before = counters["stats"]["unique_graphs"]
    warm_up = time.perf_counter()
    sides["compiled"].step(tokens)
    warm_up = time.perf_counter() - warm_up
    graphs = counters["stats"]["unique_graphs"] - graphs_before
    sides["eager"].step(tokens)
    for side in sides.values():
        for _ in range(WARM_UP - 1):
            side.step(tokens)
        side.seconds.clear()
    losses = [{name: side.step(tokens) for name, side in sides.items()} for _ in range(repeats)]
    assert counters["stats"]["unique_graphs"] == graphs_before + graphs, "compiled again after the warm-up"
    row: dict[str, Any] = {"graphs": graphs, "warm_up_seconds": warm_up, "last_losses": losses[-1]}
    for what in sides["eager"].seconds[0]:
        eager, fast = ([seconds[what] for seconds in side.seconds] for side in sides.values())
        medians = statistics.median(eager), statistics.median(fast)
        row[what] = {
            "eager_ms": 1e3 * medians[0],
            "compiled_ms": 1e3 * medians[1],
            "rate": medians[0] / medians[1],
            "median_of_pairs": statistics.median(a / b for a, b in zip(eager, fast, strict=True)),
        }
    return row


def main(batch: int = 8, evaluations: int = 6, repeats: int = 20, threads: int = 1, device: str = "cpu") -> None:
    """Measure, print and write.

    Args:
        batch: Rows of 256 tokens per step.
        evaluations: Evaluations per solve.
        repeats: Steps of each side.
        threads: CPU threads.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    fixed = {"vocab_size": 4096, "min_evaluations": evaluations, "max_evaluations": evaluations}
    recipe = change(language("tiny"), {"model": fixed})
    torch.manual_seed(0)
    tokens = torch.randint(recipe.model.vocab_size, (batch, recipe.text.length), device=device)
    rows = {precision: measure(recipe, precision, tokens, repeats) for precision in PRECISIONS}
    view = Table(title=f"a training step of language/tiny, {evaluations} evaluations", title_justify="left")
    for column in ("precision", "time", "eager, ms", "compiled, ms", "rate", "median of pairs"):
        view.add_column(column, justify="right")
    for precision, row in rows.items():
        for what, found in row.items():
            if isinstance(found, dict) and "rate" in found:
                figures = (f"{found[name]:.0f}" for name in ("eager_ms", "compiled_ms"))
                view.add_row(precision, what, *figures, f"{found['rate']:.2f}", f"{found['median_of_pairs']:.2f}")
    Console(width=120).print(view)
    settings = f"--batch {batch} --evaluations {evaluations} --repeats {repeats} --threads {threads} --device {device}"
    write_json(
        OUT, {"command": f"python -m benchmarks.compiled {settings}", "environment": environment(), "rows": rows}
    )


if __name__ == "__main__":
    run_command(main)
