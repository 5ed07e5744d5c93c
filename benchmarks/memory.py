"""Peak memory of a training step by number of evaluations: constant for the attractor, growing for a looped model.

    python -m benchmarks.memory

    python -m benchmarks.memory sides     # each side of benchmarks.language as it trains: sides-memory.json

Every number comes from a new process that builds the model, reads its resident memory, makes two training steps with
the same batch and reads its peak memory. The attractor has a tolerance that it cannot reach, so that it makes exactly
the given number of evaluations. The looped baseline tracks gradients through all its iterations; truncated
backpropagation would limit its memory, but change its gradient. Results are written to
``results/language/memory.json``.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from attractor.experiment.environment import environment
from attractor.files import write_json
from benchmarks.command import run_command
from benchmarks.language import SIDES

OUT = Path("results/language/memory.json")
EVALUATIONS = (4, 8, 16, 32, 64)
STEP = """
import json, resource, sys
import torch
from transformers import AutoModelForCausalLM
from attractor.config import change
from attractor.recipes import language

from benchmarks.language import recipe

side, n = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
if n:
    limits = {"tolerance": 1e-30, "min_evaluations": 1, "max_evaluations": n}
    limits |= {"mean_recurrence": n, "tracked_recurrence": n} if side == "looped" else {}
    config = change(language("tiny", side).model, limits)
else:  # as it trains
    config = change(recipe(side, 0, 1).model, {"vocab_size": 8192})
model = AutoModelForCausalLM.from_config(config).train()
for p in model.parameters():  # new layers are the identity, which converges at once
    if p.ndim == 2:
        torch.nn.init.normal_(p, std=0.02)
ids = torch.randint(config.vocab_size, (16, 256))
torch.poisson = lambda rate: rate  # the looped model draws its number of iterations; use the mean
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
calls = 0
for _ in range(2):
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, labels=ids, return_logits=False)
    output.loss.backward()
    model.zero_grad()
    calls = output.solution.outcome.calls if output.solution else 1
print(json.dumps({"side": side, "evaluations": calls, "built_mb": before, "peak_mb": peak()}))
"""


def measure(side: str, evaluations: int) -> dict[str, Any]:
    """Return the results of one process. With 0 evaluations, the model makes as many as the recipe says."""
    command = [sys.executable, "-c", STEP, side, str(evaluations)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


def sides() -> None:
    """Measure each side of the comparison as it trains, print and write."""
    rows = {side: measure(side, 0) for side in SIDES}
    for side, row in rows.items():
        print(f"{side:12} {row['peak_mb']:6.0f} MB, {row['peak_mb'] - row['built_mb']:6.0f} more than before the steps")
    out = OUT.with_name("sides-memory.json")
    write_json(out, {"command": "python -m benchmarks.memory sides", "environment": environment(), "rows": rows})


def grow(evaluations: tuple[int, ...] = EVALUATIONS) -> None:
    """Measure by number of evaluations, print and write.

    Args:
        evaluations: Numbers of evaluations.
    """
    rows = []
    for side in ("attractor", "looped"):
        for n in evaluations:
            rows.append(measure(side, n))
            assert rows[-1]["evaluations"] == n, rows[-1]
    view = Table(
        title="peak resident memory of a training step, MB; in brackets the increase over the memory before",
        title_justify="left",
    )
    for column in ("side", *map(str, evaluations), f"{evaluations[-1]} to {evaluations[0]}"):
        view.add_column(column, justify="right")
    ratios = {}
    for side in ("attractor", "looped"):
        of_side = [row for row in rows if row["side"] == side]
        ratios[side] = of_side[-1]["peak_mb"] / of_side[0]["peak_mb"]
        figures = [f"{row['peak_mb']:.0f} ({row['peak_mb'] - row['built_mb']:.0f})" for row in of_side]
        view.add_row(side, *figures, f"{ratios[side]:.3f}")
    Console(width=140).print(view)
    write_json(
        OUT, {"command": "python -m benchmarks.memory", "environment": environment(), "rows": rows, "ratio": ratios}
    )


if __name__ == "__main__":
    run_command(grow, sides, default="grow")
