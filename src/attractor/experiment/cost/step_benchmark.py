"""A recipe in training on random data, one step at a time: what ``attractor cost`` and the benchmarks measure."""

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from attractor.experiment.cost.device import peak_memory
from attractor.nn import compile_blocks
from attractor.objectives import DeepSupervision, NextToken
from attractor.recipes import LanguageRecipe, PuzzleRecipe, Recipe
from attractor.training import PRECISIONS, DistributedContext, Objective


class StepBenchmark:
    """Makes steps like the loop's: forward, backward, clipping and the optimisers'. Nothing is averaged, judged or logged.

    Attributes
    ----------
    calls
        Evaluations of each batch so far, as the objective tells them; a segment's where it tells none.
    """

    def __init__(self, recipe: Recipe, *, compiled: bool = False) -> None:
        self.recipe, self.device = recipe, DistributedContext().device
        torch.manual_seed(recipe.train.seed)
        self.model = build(recipe).to(self.device).train()
        for p in self.model.parameters():  # new layers of a language model are the identity, and solved at once
            if p.ndim == 2 and not p.any():
                nn.init.normal_(p, std=0.02)
        if compiled:
            compile_blocks(self.model)
        self._config = recipe.optimizer if isinstance(recipe, LanguageRecipe) else recipe.train.optimizer
        self._optimizers = self._config.build(self.model)
        self._objective = _objective(recipe, self.model, self.device)
        self.calls: list[float] = []

    def step(self) -> None:
        """Make a step, all batches of it."""
        train = self.recipe.train
        for _ in range(train.accumulate):
            with torch.autocast(self.device.type, PRECISIONS[train.precision], enabled=train.precision != "fp32"):
                loss, metrics = self._objective.step(self.model)
            (loss / train.accumulate).backward()
            self.calls.append(float(metrics.get("calls", getattr(self.model, "evaluations_per_segment", 1))))
        nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip)
        for optimizer in self._optimizers:
            optimizer.step()
        self.model.zero_grad()

    def timed(self) -> tuple[float, float]:
        """Make a step and return its seconds, the device's work included, and the processor's own."""
        self._wait()
        begun, used = time.perf_counter(), time.process_time()
        self.step()
        self._wait()
        return time.perf_counter() - begun, time.process_time() - used

    def peak(self) -> int:
        """Make a step and return the most bytes that this training holds; only after the first step is all of it there.

        On a processor what compiled code makes for itself is not seen.
        """
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        tensors = [t for state in states for t in state.values() if isinstance(t, Tensor)]
        storages = [t.untyped_storage() for t in (*self.model.parameters(), *self.model.buffers(), *tensors)]
        kept = {storage._cdata: storage.nbytes() for storage in storages}
        average = (
            sum(p.nbytes for p in self.model.state_dict(keep_vars=True).values()) if self.recipe.train.ema_decay else 0
        )
        return sum(kept.values()) + average + peak_memory(self.step, self.device)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def build(recipe: Recipe) -> Any:
    """Return a new model of a recipe."""
    if isinstance(recipe, LanguageRecipe):
        return AutoModelForCausalLM.from_config(recipe.model)
    return recipe.model.build()


def with_batch(recipe: Recipe, batch_size: int, accumulate: int) -> Recipe:
    """Return the recipe with steps of so many batches of that size."""
    train = replace(recipe.train, accumulate=accumulate)
    if isinstance(recipe, LanguageRecipe):
        return replace(recipe, text=replace(recipe.text, batch_size=batch_size), train=train)
    return replace(recipe, supervision=replace(recipe.supervision, batch_size=batch_size), train=train)


def _objective(recipe: Recipe, model: Any, device: torch.device) -> Objective:
    if isinstance(recipe, LanguageRecipe):
        return NextToken(_Noise(recipe), recipe.text)
    assert isinstance(recipe, PuzzleRecipe)
    rng, side, batch = np.random.default_rng(0), recipe.data.size, recipe.supervision.batch_size
    grids = [
        rng.integers(0, most, (batch, side, side)).astype(np.uint8)
        for most in (recipe.model.num_symbols, recipe.model.num_classes)
    ]
    return DeepSupervision(
        grids[0],
        grids[1],
        recipe.supervision,
        init_state=model.init_state,
        augment=lambda questions, answers, rng: (questions, answers),
        device=device,
    )


class _Noise:
    """Rows of random tokens."""

    def __init__(self, recipe: LanguageRecipe) -> None:
        self._vocab, self._length = recipe.model.vocab_size, recipe.text.length

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        return torch.randint(self._vocab, (num, self._length)), torch.arange(self._length).expand(num, -1)
