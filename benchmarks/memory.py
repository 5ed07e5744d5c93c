"""Peak memory of a training step against the number of evaluations: flat for the attractor, growing for a loop.

    python -m benchmarks.memory

Every figure is a fresh process that builds the model, notes its resident memory, makes two training steps of the same batch and
reads the high-water mark. The attractor is made to take exactly so many evaluations by a tolerance that it cannot meet; the looped
baseline tracks gradients through all its iterations, which is what "flat" is compared with (truncation bounds it, at the price of
the gradient). Written to ``results/language/memory.json``.
"""

import json
import subprocess
import sys
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from attractor.cli.runs import environment, write_json

OUT = Path("results/language/memory.json")
EVALUATIONS = (4, 8, 16, 32, 64)
STEP = """
import json, resource, sys
import torch
from transformers import AutoModelForCausalLM
from attractor.config import change
from attractor.recipes import language

side, n = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
limits = {"tolerance": 1e-30, "min_evaluations": 1, "max_evaluations": n}
limits |= {"mean_recurrence": n, "tracked_recurrence": n} if side == "looped" else {}
model = AutoModelForCausalLM.from_config(change(language("tiny", side).model, limits)).train()
for p in model.parameters():  # new layers are the identity, and rest at once
    if p.ndim == 2:
        torch.nn.init.normal_(p, std=0.02)
ids = torch.randint(32768, (16, 256))
torch.poisson = lambda rate: rate  # the looped model draws its number of iterations; here it is the mean
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
calls = 0
for _ in range(2):
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, labels=ids)
    output.loss.backward()
    model.zero_grad()
    calls = output.solution.outcome.calls
print(json.dumps({"side": side, "evaluations": calls, "built_mb": before, "peak_mb": peak()}))
"""


def main(evaluations: tuple[int, ...] = EVALUATIONS) -> None:
    """Measure, print and write.

    Args:
        evaluations: How many to make.
    """
    rows = []
    for side in ("attractor", "looped"):
        for n in evaluations:
            run = subprocess.run([sys.executable, "-c", STEP, side, str(n)], capture_output=True, text=True, check=True)
            rows.append(json.loads(run.stdout.splitlines()[-1]))
            assert rows[-1]["evaluations"] == n, rows[-1]
    view = Table(
        title="peak resident memory of a training step, MB; in brackets without what was there before",
        title_justify="left",
    )
    for column in ("side", *map(str, evaluations), f"{evaluations[-1]} to {evaluations[0]}"):
        view.add_column(column, justify="right")
    ratios = {}
    for side in ("attractor", "looped"):
        own = [row for row in rows if row["side"] == side]
        ratios[side] = own[-1]["peak_mb"] / own[0]["peak_mb"]
        figures = [f"{row['peak_mb']:.0f} ({row['peak_mb'] - row['built_mb']:.0f})" for row in own]
        view.add_row(side, *figures, f"{ratios[side]:.3f}")
    Console(width=140).print(view)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        OUT, {"command": "python -m benchmarks.memory", "environment": environment(), "rows": rows, "ratio": ratios}
    )


if __name__ == "__main__":
    tyro.cli(main)
