"""What reading data and writing checkpoints cost the training of ``language/tiny``, in one process.

    python -m benchmarks.checkpoint --data TEXT [--batch 8] [--steps 10] [--rounds 6] [--threads 1] [--device cpu]

TEXT is prepared text. In every round as many steps are made with a checkpoint, begun before the first of them and written beside
them, as without; which come first changes from round to round. Medians over rounds are printed and written to
``results/scale/checkpoint.json``:

- the share of a step in which it reads its rows;
- how long a checkpoint stops training, in steps: until its copy is made;
- what it costs in all, in steps: that stop, by how much the steps beside its writing take longer, and what is left to wait for
  after them, which a longer round makes none.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro
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
from attractor.training.parallel import clip
from attractor.training.state import TrainingState

OUT = Path("results/scale/checkpoint.json")
WARM_UP = 3


class Timed:
    """Rows, and the seconds that reading them took."""

    def __init__(self, rows: PackedRows) -> None:
        self.rows, self.seconds = rows, 0.0

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        begun = time.perf_counter()
        try:
            return self.rows.batch(first, num)
        finally:
            self.seconds += time.perf_counter() - begun


class Run:
    """The training loop's steps, without its log and schedule."""

    def __init__(self, recipe: LanguageRecipe, data: Path, device: torch.device) -> None:
        self.rows = Timed(PackedRows(Shards(data), recipe.text.length))
        self.distributed = DistributedContext(device=device)
        self.config = replace(recipe.train, optimizer=recipe.optimizer)
        torch.manual_seed(0)
        self.model: Any = AutoModelForCausalLM.from_config(recipe.model).to(device).train()
        self.objective = NextToken(self.rows, recipe.text)
        guard = Guard(self.config.guard)
        self.state = TrainingState(self.model, self.objective, guard, self.config, (), self.distributed)

    def steps(self, num: int) -> float:
        """Make so many steps and return their seconds."""
        begun = self.clock()
        for _ in range(num):
            loss, _ = self.objective.step(self.model)
            loss.backward()
            clip(self.model, self.config.optimizer.clip)
            self.state.move()
            self.model.zero_grad(set_to_none=True)
            self.state.step += 1
        return self.clock() - begun

    def clock(self) -> float:
        if self.distributed.device.type == "cuda":
            torch.cuda.synchronize(self.distributed.device)
        return time.perf_counter()


def measure(run: Run, checkpoints: Checkpoints, steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each round."""
    run.state.save(checkpoints)  # the first makes the buffers that the others copy into
    run.steps(WARM_UP)
    checkpoints.wait()
    found: dict[str, list[float]] = {name: [] for name in ("plain", "reading", "stop", "beside", "rest", "writing")}
    for which in range(rounds):
        for saves in (which % 2 == 0, which % 2 == 1):
            run.rows.seconds = 0.0
            if not saves:
                found["plain"].append(run.steps(steps))
                found["reading"].append(run.rows.seconds)
                continue
            begun = run.clock()
            run.state.save(checkpoints)
            found["stop"].append(run.clock() - begun)
            assert checkpoints.writing is not None
            checkpoints.writing.add_done_callback(lambda _, begun=begun: found["writing"].append(run.clock() - begun))
            found["beside"].append(run.steps(steps))
            after = run.clock()
            checkpoints.wait()
            found["rest"].append(run.clock() - after)
    return found


def main(data: Path, batch: int = 8, steps: int = 10, rounds: int = 6, threads: int = 1, device: str = "cpu") -> None:
    """Measure, print and write.

    Args:
        data: Prepared text.
        batch: Rows of 256 tokens of a step.
        steps: Of each side of a round; enough for a checkpoint to be written beside them.
        rounds: How often.
        threads: Of the processor.
        device: cpu or cuda.
    """
    torch.set_num_threads(threads)
    shards = Shards(data)
    own = {"bos_token_id": shards.end_of_text, "eos_token_id": shards.end_of_text, "pad_token_id": shards.end_of_text}
    model = {**own, "vocab_size": shards.vocab_size}
    recipe = change(language("tiny"), {"model": model, "text": {"batch_size": batch}})
    run = Run(recipe, data, torch.device(device))
    with (
        tempfile.TemporaryDirectory() as out,
        Checkpoints(Path(out), metadata={"kind": "benchmark"}, save_model=save_weights) as checkpoints,
    ):
        found = measure(run, checkpoints, steps, rounds)
        size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file()) / checkpoints.max_checkpoints
    plain, reading, stop, writing = (statistics.median(found[n]) for n in ("plain", "reading", "stop", "writing"))
    costs = [
        (a + b + c - d) / d * steps
        for a, b, c, d in zip(found["stop"], found["beside"], found["rest"], found["plain"], strict=True)
    ]
    figures = {
        "step_ms": 1e3 * plain / steps,
        "reading_share": reading / plain,
        "stop_steps": stop / plain * steps,
        "cost_steps": statistics.median(costs),
        "writing_steps": writing / plain * steps,
        "checkpoint_mb": size / 1e6,
    }
    Console(width=120).print(
        f"a step takes {figures['step_ms']:.0f} ms, {figures['reading_share']:.2%} of it to read its rows\n"
        f"a checkpoint of {figures['checkpoint_mb']:.0f} MB stops training for {figures['stop_steps']:.1%} of a step, is written "
        f"beside {figures['writing_steps']:.1f} steps, and costs {figures['cost_steps']:.1%} of a step in all",
        soft_wrap=True,
    )
    settings = f"--data TEXT --batch {batch} --steps {steps} --rounds {rounds} --threads {threads} --device {device}"
    about = {"command": f"python -m benchmarks.checkpoint {settings}", "environment": environment()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_json(OUT, {**about, "figures": figures, "seconds": found})


if __name__ == "__main__":
    tyro.cli(main)
