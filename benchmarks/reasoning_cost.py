"""What a training step of every reasoner costs on this machine: weights, operations, steps a second, share of the peak, memory.

    python -m benchmarks.reasoning_cost                                   # the published sizes, in batches that a processor holds
    python -m benchmarks.reasoning_cost --task sudoku/9x9 --batch 64 --threads 1

Each side is a fresh process that trains its recipe for some steps under its own objective, precision and optimiser. On a
processor peak memory is the high-water mark above what the process held before; on a GPU what was allocated. Written to
``results/reasoning/cost-TASK.json``.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from attractor.cli.runs import environment, write_json
from attractor.recipes.puzzles import FAMILIES

OUT = Path("results/reasoning")
STEP = """
import json, resource, statistics, sys, time
import torch
from torch.utils.flop_counter import FlopCounterMode
from attractor.cli.reasoning import AUGMENT, training_puzzles
from attractor.config import override
from attractor.nn import compile_blocks
from attractor.recipes import recipe as find_recipe
from attractor.train import PRECISIONS, DeepSupervision, peak_flops

name, batch, repeats, threads, compiled = sys.argv[1], *map(int, sys.argv[2:])
if threads:
    torch.set_num_threads(threads)
recipe = override(find_recipe(name), [f"supervision.batch_size={batch}", "data.num_puzzles=64"])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
dtype = PRECISIONS[recipe.train.precision]
model = recipe.model.build().to(device)
if compiled:
    compile_blocks(model)
learnt = training_puzzles(recipe)
objective = DeepSupervision(
    learnt.questions, learnt.answers, recipe.supervision, start=model.start, augment=AUGMENT[recipe.kind], device=device
)
optimizers = recipe.train.optimizer.build(model)
def wait():
    if device.type == "cuda":
        torch.cuda.synchronize()
def peak():
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def step():
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss, _ = objective.step(model)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    model.zero_grad()
before = peak()
if compiled:
    step()
    flops = float("nan")
else:
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
step()
seconds = []
for _ in range(repeats):
    wait()
    begun = time.perf_counter()
    step()
    wait()
    seconds.append(time.perf_counter() - begun)
median = statistics.median(seconds)
print(json.dumps({
    "weights": sum(p.numel() for p in model.parameters()),
    "gflop": flops / 1e9,
    "seconds": median,
    "steps_per_second": 1 / median,
    "mfu": flops / median / peak_flops(device, dtype),
    "mb": peak() - before,
}))
"""


def main(
    task: str = "sudoku/extreme", batch: int = 16, repeats: int = 5, threads: int = 0, compiled: bool = False
) -> None:
    """Measure all families of a task, print and write.

    Args:
        task: A recipe without its family: sudoku/6x6, sudoku/9x9 or sudoku/extreme.
        batch: Puzzles of a step.
        repeats: Steps of each side.
        threads: Of the processor; 0 leaves it to torch.
        compiled: Compile the update, as the recipe does on a GPU; operations are then not counted.
    """
    rows: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        name = task if family == "attractor" else f"{task}-{family}"
        command = [sys.executable, "-c", STEP, name, *map(str, (batch, repeats, threads, int(compiled)))]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[family] = json.loads(run.stdout.splitlines()[-1])
    view = Table(title=f"a training step of {task}, batch {batch}", title_justify="left")
    for column in ("side", "weights", "GFLOP", "s", "steps/s", "MFU", "MB"):
        view.add_column(column, justify="right", no_wrap=True)
    for family, row in rows.items():
        figures = (f"{row[key]:.3g}" for key in ("gflop", "seconds", "steps_per_second", "mfu"))
        view.add_row(family, f"{row['weights']:,}", *figures, f"{row['mb']:.0f}")
    Console(width=120).print(view)
    OUT.mkdir(parents=True, exist_ok=True)
    settings = f"--task {task} --batch {batch} --repeats {repeats} --threads {threads}" + " --compiled" * compiled
    result = {"command": f"python -m benchmarks.reasoning_cost {settings}", "environment": environment(), "rows": rows}
    write_json(OUT / f"cost-{task.replace('/', '-')}.json", result)


if __name__ == "__main__":
    tyro.cli(main)
