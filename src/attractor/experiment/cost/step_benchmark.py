"""Training steps of a recipe on random data: for ``attractor cost`` and the benchmarks."""

import math
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attractor.experiment.cost.estimate import CostEstimate, MeasuredCost, build_model, depends_on_clues
from attractor.experiment.cost.memory import estimate_memory
from attractor.experiment.device import free_memory, peak_flops, peak_memory
from attractor.nn import compile_blocks
from attractor.objectives import DeepSupervision, NextToken
from attractor.recipes import LanguageRecipe, PuzzleRecipe, Recipe
from attractor.training import PRECISIONS, DistributedContext, Objective

MAX_SECONDS = 60.0  # of a measurement
MIN_MFU = 0.1  # assumed for the duration of a measurement
CLUE_SHARE = 0.28  # of the cells of random Sudokus, as in hard ones
NUM_TIMED = 2  # steps, after one for warm-up and one for memory


class StepBenchmark:
    """Makes the steps of a training loop: forward, backward, gradient clipping and optimizer, without averages or logs.

    ``evaluations`` lists those of each batch so far; of a supervision segment for reasoners.
    """

    def __init__(self, recipe: Recipe, *, compiled: bool = False) -> None:
        self.recipe, self.device = recipe, DistributedContext().device
        torch.manual_seed(recipe.train.seed)
        self.model = build_model(recipe).to(self.device).train()
        for p in self.model.parameters():  # zero matrices make new layers the identity, which converges at once
            if p.ndim == 2 and not p.any():
                nn.init.normal_(p, std=0.02)
        if compiled:
            compile_blocks(self.model)
        self._config = recipe.optimizer if isinstance(recipe, LanguageRecipe) else recipe.train.optimizer
        self._optimizers = self._config.build(self.model)
        self._objective = _random_objective(recipe, self.model, self.device)
        self.evaluations: list[float] = []

    def step(self) -> None:
        """Make one step with all its accumulated batches."""
        train = self.recipe.train
        for _ in range(train.accumulate):
            with torch.autocast(self.device.type, PRECISIONS[train.precision], enabled=train.precision != "fp32"):
                loss, metrics = self._objective.step(self.model, 1.0)
            (loss / train.accumulate).backward()
            default = getattr(self.model, "evaluations_per_segment", 1)
            self.evaluations.append(float(metrics.get("calls", default)))
        nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip)
        for optimizer in self._optimizers:
            optimizer.step()
        self.model.zero_grad()

    def time_step(self) -> tuple[float, float]:
        """Make one step; return its seconds of wall-clock time, with the device's work, and of CPU time."""
        self._synchronize()
        start, cpu_start = time.perf_counter(), time.process_time()
        self.step()
        self._synchronize()
        return time.perf_counter() - start, time.process_time() - cpu_start

    def peak_memory(self) -> int:
        """Make one step and return the peak memory of training in bytes. Call it after the first step.

        On a CPU, temporary memory of compiled code is not included.
        """
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        tensors = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        storages = [t.untyped_storage() for t in (*self.model.parameters(), *self.model.buffers(), *tensors)]
        permanent = sum({storage._cdata: storage.nbytes() for storage in storages}.values())
        if self.recipe.train.ema_decay:
            permanent += sum(p.nbytes for p in self.model.state_dict(keep_vars=True).values())
        return permanent + peak_memory(self.step, self.device)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_cost(estimate: CostEstimate) -> CostEstimate:
    """Return the estimate with real steps on this machine, at the largest batch that fits its memory and a minute."""
    device = DistributedContext().device
    peak = peak_flops(device, PRECISIONS[estimate.recipe.train.precision])
    free = 0.9 * free_memory(device)
    batch_size, length = estimate.setup.batch_size, estimate.setup.length if estimate.unit == "token" else 1
    while True:
        setup = replace(estimate.setup, batch_size=batch_size, accumulate=1, strategy="none", world_size=1)
        memory = estimate_memory(estimate.model, setup).peak
        units = batch_size * length
        seconds = (2 + NUM_TIMED) * units * estimate.flops() / (MIN_MFU * peak)
        if memory < free and not seconds > MAX_SECONDS:  # NaN when an adjoint solve decides
            break
        if batch_size == 1:
            needed = f"{memory / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free" if memory >= free else ""
            needed = needed or f"about {seconds / 60:.0f} minutes on this machine"
            return replace(estimate, not_measured=f"even a batch of 1 needs {needed}.")
        batch_size //= 2
    benchmark = StepBenchmark(_with_batch_size(estimate.recipe, batch_size))
    benchmark.step()
    measured_peak = benchmark.peak_memory()
    times = [benchmark.time_step()[0] for _ in range(NUM_TIMED)]
    flops = units * sum(estimate.flops(n) for n in benchmark.evaluations[-NUM_TIMED:])
    measured = MeasuredCost(
        batch_size=batch_size,
        peak=measured_peak,
        estimate=memory,
        rate=units / statistics.median(times),
        mfu=math.nan if depends_on_clues(estimate.recipe) else flops / sum(times) / peak,
    )
    return replace(estimate, measured=measured)


def _with_batch_size(recipe: Recipe, batch_size: int) -> Recipe:
    """Return the recipe with one batch of this size per step."""
    train = replace(recipe.train, accumulate=1)
    if isinstance(recipe, LanguageRecipe):
        return replace(recipe, text=replace(recipe.text, batch_size=batch_size), train=train)
    return replace(recipe, supervision=replace(recipe.supervision, batch_size=batch_size), train=train)


def _random_objective(recipe: Recipe, model: Any, device: torch.device) -> Objective:
    if isinstance(recipe, LanguageRecipe):
        vocab_size, length = recipe.model.vocab_size, recipe.text.length

        def batch(first: int, num: int) -> tuple[Tensor, Tensor]:
            return torch.randint(vocab_size, (num, length)), torch.arange(length).expand(num, -1)

        return NextToken(SimpleNamespace(batch=batch), recipe.text)
    assert isinstance(recipe, PuzzleRecipe)
    rng, side, batch_size = np.random.default_rng(0), recipe.data.size, recipe.supervision.batch_size
    questions, answers = (
        rng.integers(0, num, (batch_size, side, side)).astype(np.uint8)
        for num in (recipe.model.num_symbols, recipe.model.num_classes)
    )
    if recipe.model.cost_depends_on_clues:
        questions *= rng.random(questions.shape) < CLUE_SHARE
    return DeepSupervision(
        questions,
        answers,
        replace(recipe.supervision, windows=()),  # whole mazes need the most memory
        init_state=model.init_state,
        augment=lambda questions, answers, rng: (questions, answers),
        auxiliary_targets=lambda questions: np.zeros(questions.shape, np.int64),
        device=device,
    )
