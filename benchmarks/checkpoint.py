"""How much time reading data and writing checkpoints take in the training of ``language/tiny``, in one process.

    python -m benchmarks.checkpoint --data TEXT [--batch 8] [--steps 10] [--rounds 6] [--threads 1] [--device cpu]

TEXT is a folder of prepared text. Every round makes the same number of steps twice: once without a checkpoint, and once
with a checkpoint that is started before the first step and written during the steps. The order alternates from round to
round. Medians over rounds are printed and written to ``results/scale/checkpoint.json``:

- the fraction of a step that reads rows;
- how long a checkpoint blocks training, in steps: until its copy in memory is made;
- its total cost, in steps: the blocked time, the slowdown of the steps during the write, and the wait after them. In a
long enough
  round there is no such wait.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM

from attractor.config import change
from attractor.data.text import PackedRows, Shards
from attractor.experiment.environment import environment
from attractor.files import write_json
from attractor.objectives import NextToken
from attractor.recipes import LanguageRecipe, language
from attractor.training import Checkpoints, DistributedContext
from attractor.training.checkpoint import save_weights
from attractor.training.guard import Guard
from attractor.training.parallel import clip_gradients
from attractor.training.state import TrainingState
from benchmarks.command import run_command

OUT = Path("results/scale/checkpoint.json")
WARM_UP = 3


class TimedRows:
    """Rows of text, and the time that reading them took."""

    def __init__(self, rows: PackedRows) -> None:
        self.rows, self.seconds = rows, 0.0

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        start = time.perf_counter()
        try:
            return self.rows.batch(first, num)
        finally:
            self.seconds += time.perf_counter() - start


class Run:
    """The steps of the training loop, without log and schedule."""

    def __init__(self, recipe: LanguageRecipe, data: Path, device: torch.device) -> None:
        self.rows = TimedRows(PackedRows(Shards(data), recipe.text.length))
        self.distributed = DistributedContext(device=device)
        self.config = replace(recipe.train, optimizer=recipe.optimizer)
        torch.manual_seed(0)
        self.model: Any = AutoModelForCausalLM.from_config(recipe.model).to(device).train()
        self.objective = NextToken(self.rows, recipe.text)
        guard = Guard(self.config.guard)
        self.state = TrainingState(self.model, self.objective, guard, self.config, (), self.distributed)

    def steps(self, num: int) -> float:
        """Make ``num`` steps and return their time in seconds."""
        start = self.clock()
        for _ in range(num):
            loss, _ = self.objective.step(self.model)
            loss.backward()
            clip_gradients(self.model, self.config.optimizer.clip)
            self.state.optimizer_step()
            self.model.zero_grad(set_to_none=True)
            self.state.step += 1
        return self.clock() - start

    def clock(self) -> float:
        """Return the time in seconds once the device has finished."""
        if self.distributed.device.type == "cuda":
            torch.cuda.synchronize(self.distributed.device)
        return time.perf_counter()


def measure(run: Run, checkpoints: Checkpoints, steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the times of each round in seconds."""
    run.state.save(checkpoints)  # the first one allocates the buffers that the others reuse
    run.steps(WARM_UP)
    checkpoints.wait()
    found: dict[str, list[float]] = {
        name: [] for name in ("without", "reading", "blocked", "during", "wait", "writing")
    }
    for index in range(rounds):
        for with_checkpoint in (index % 2 == 0, index % 2 == 1):
            run.rows.seconds = 0.0
            if not with_checkpoint:
                found["without"].append(run.steps(steps))
                found["reading"].append(run.rows.seconds)
                continue
            start = run.clock()
            run.state.save(checkpoints)
            found["blocked"].append(run.clock() - start)
            assert checkpoints.writing is not None
            checkpoints.writing.add_done_callback(lambda _, start=start: found["writing"].append(run.clock() - start))
            found["during"].append(run.steps(steps))
            steps_done = run.clock()
            checkpoints.wait()
            found["wait"].append(run.clock() - steps_done)
    return found


def main(data: Path, batch: int = 8, steps: int = 10, rounds: int = 6, threads: int = 1, device: str = "cpu") -> None:
    """Measure, print and write.

    Args:
        data: Prepared text.
        batch: Rows of 256 tokens per step.
        steps: Steps with and without a checkpoint, per round. Enough for a checkpoint to be written during them.
        rounds: Number of rounds.
        threads: CPU threads.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    shards = Shards(data)
    tokens = {
        "bos_token_id": shards.begin_of_text,
        "eos_token_id": shards.end_of_text,
        "pad_token_id": shards.end_of_text,
    }
    model = {**tokens, "vocab_size": shards.vocab_size}
    recipe = change(language("tiny"), {"model": model, "text": {"batch_size": batch}})
    run = Run(recipe, data, torch.device(device))
    with (
        tempfile.TemporaryDirectory() as out,
        Checkpoints(Path(out), metadata={"kind": "benchmark"}, save_model=save_weights) as checkpoints,
    ):
        found = measure(run, checkpoints, steps, rounds)
        size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file()) / checkpoints.max_checkpoints
    names = ("without", "reading", "blocked", "writing")
    without, reading, blocked, writing = (statistics.median(found[name]) for name in names)
    costs = [
        (a + b + c - d) / d * steps
        for a, b, c, d in zip(found["blocked"], found["during"], found["wait"], found["without"], strict=True)
    ]
    figures = {
        "step_ms": 1e3 * without / steps,
        "reading_fraction": reading / without,
        "blocked_steps": blocked / without * steps,
        "cost_steps": statistics.median(costs),
        "writing_steps": writing / without * steps,
        "checkpoint_mb": size / 1e6,
    }
    Console(width=120).print(
        f"a step takes {figures['step_ms']:.0f} ms, {figures['reading_fraction']:.2%} of which reads rows\n"
        f"a checkpoint of {figures['checkpoint_mb']:.0f} MB blocks training for {figures['blocked_steps']:.1%} of a step, "
        f"is written during {figures['writing_steps']:.1f} steps, and costs {figures['cost_steps']:.1%} of a step in total",
        soft_wrap=True,
    )
    settings = f"--data TEXT --batch {batch} --steps {steps} --rounds {rounds} --threads {threads} --device {device}"
    about = {"command": f"python -m benchmarks.checkpoint {settings}", "environment": environment()}
    write_json(OUT, {**about, "figures": figures, "seconds": found})


if __name__ == "__main__":
    run_command(main)
