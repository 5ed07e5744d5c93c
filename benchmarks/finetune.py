"""Memory and time of a training step of a retrofitted model, by what is trained.

    python -m benchmarks.finetune MODEL --data TOKENS

The last layer of the model becomes the attractor. Every way takes the same steps on the same rows in a process of its own,
with AdamW and bf16 autocast, on one thread. Times are of that thread alone, so that other work on the machine changes them
little. The first step is warm-up.
"""

import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from attractor.data.text import PackedRows, Shards
from attractor.experiment.environment import environment
from attractor.files import write_json
from attractor.files.received import quiet
from attractor.interop import retrofit
from attractor.optim import freeze
from benchmarks.command import run_command

OUT = Path("results/language")
LENGTH, BATCH = 256, 2
WAYS = "all weights", "the attractor's layer", "the attractor's layer, half distilled", "LoRA, rank 8, every linear map"


def measure(model: Path, /, data: Path, num_steps: int = 6) -> None:
    """Measure every way, print and write.

    Args:
        model: Folder or GGUF file of a pretrained model.
        data: Text prepared with its tokenizer.
        num_steps: Of 512 tokens each, after one of warm-up.
    """
    torch.set_num_threads(1)  # as each way
    context = multiprocessing.get_context("spawn")
    rows = []
    for way in WAYS:
        with context.Pool(1) as pool:
            rows.append(pool.apply(run_way, (way, model, data, num_steps)))
        for name in ("seconds", "peak_gb"):
            rows[-1][f"relative_{name}"] = rows[-1][name] / rows[0][name]
        Console(width=200).print(rows[-1], highlight=False)
    command = f"python -m benchmarks.finetune MODEL --data TOKENS --num-steps {num_steps}"
    write_json(OUT / "finetune.json", {"command": command, "environment": environment(), "rows": rows})


def run_way(way: str, folder: Path, data: Path, num_steps: int) -> dict[str, Any]:
    """Take a few steps in one way, and return their costs."""
    torch.set_num_threads(1)
    model = prepare(way, load(folder))
    teacher = load(folder).eval() if "distilled" in way else None
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    seconds, evaluations = list[float](), list[float]()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what the process holds now
    for step in range(num_steps + 1):
        rows, _ = PackedRows(Shards(data, "train"), LENGTH).batch(step * BATCH, BATCH)
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            output = model(input_ids=rows, labels=rows)
            loss = output.loss
            if teacher is not None:
                loss = 0.5 * loss + 0.5 * model.divergence(output, teacher, rows, input_ids=rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
        evaluations.append(float(output.solution.evaluations.float().mean()))
    return {
        "way": way,
        "trained_weights": sum(weight.numel() for weight in trained),
        "evaluations": statistics.mean(evaluations[1:]),
        "seconds": statistics.median(seconds[1:]),
        "peak_gb": peak_gb(),
    }


def load(folder: Path) -> Any:
    """Return the retrofitted model."""
    with quiet():
        return retrofit(
            folder, num_attractor_layers=1, tolerance=3e-3, min_evaluations=2, max_evaluations=16, budget=None
        ).train()


def prepare(way: str, model: Any) -> Any:
    """Return the model with what is trained."""
    if way.startswith("LoRA"):
        import peft

        settings = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear")
        return peft.get_peft_model(model, settings)
    if way != WAYS[0]:
        last = model.config.num_hidden_layers - 1
        freeze(model, rf"^(?!.*\.layers\.{last}\.)")
    return model


def peak_gb() -> float:
    """Return the largest resident memory of this process since the last reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


if __name__ == "__main__":
    run_command(measure)
