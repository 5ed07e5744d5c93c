"""What a recipe costs, reckoned from its settings and, on a scale that fits, measured by real steps."""

import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from attractor.config import change
from attractor.errors import ConfigError
from attractor.evaluate.cost import Memory, Run, memory
from attractor.models.language import LanguageModel, LoopedConfig
from attractor.recipes import LanguageRecipe, Recipe, SudokuDataConfig, fitted
from attractor.train import PRECISIONS, DeepSupervision, NextToken, Objective, World, peak_flops
from attractor.train.device import free_memory, peak_memory

LONGEST = 60.0  # seconds that measuring may take
SLOW = 0.1  # the share of its peak that a device is expected to reach at least
STEPS = 4  # one to warm up, one for memory, two for time


@dataclass(frozen=True, kw_only=True)
class Reckoning:
    """Figures of a recipe. A unit is a token, or one segment of one puzzle.

    Attributes
    ----------
    recipe
        As it is trained, with a model that makes exactly ``evaluations`` a solve.
    model
        On no device: shapes alone.
    size
        Tokens of a row, cells of a puzzle.
    units
        Of a step, over all processes.
    steps
        Of the whole run; None where the clock ends it.
    run
        One process's part.
    """

    recipe: Recipe
    model: Any
    unit: str
    size: int
    evaluations: int
    units: int
    steps: int | None
    run: Run
    memory: Memory

    @property
    def flops(self) -> float:
        """Operations of training on a unit."""
        return self.training(self.evaluations)

    @property
    def total(self) -> float | None:
        """Operations of the whole run."""
        return None if self.steps is None else self.flops * self.units * self.steps

    def forward(self, evaluations: float) -> float:
        """Operations of answering: a token, or a puzzle."""
        return self._flops(evaluations, training=False)

    def training(self, evaluations: float) -> float:
        """Operations of training on a unit at so many evaluations."""
        return self._flops(evaluations, training=True)

    def _flops(self, evaluations: float, *, training: bool) -> float:
        count = self.model.flops_per_token if isinstance(self.model, LanguageModel) else self.model.flops_per_puzzle
        return float(count(self.size, evaluations, training=training))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of real steps of ``batch_size`` on this machine: bytes at their peak, and as estimated; units a second; and MFU."""

    batch_size: int
    peak: float
    estimate: float
    rate: float
    mfu: float


def reckon(recipe: Recipe, *, evaluations: int, world_size: int = 1, strategy: str = "none") -> Reckoning:
    """Reckon what a recipe costs; language models make so many evaluations where neither they nor their recipe say how many.

    Raises
    ------
    ConfigError
        For a batch that cannot be divided among so many processes, and a strategy that does not exist.
    """
    if evaluations < 1 or world_size < 1:
        raise ConfigError(f"evaluations={evaluations} and world_size={world_size}: give whole numbers from 1 up.")
    penalised = 0
    if isinstance(recipe, LanguageRecipe):
        evaluations = _evaluations(recipe, evaluations)
        limits = {"min_evaluations": evaluations, "max_evaluations": evaluations}
        recipe = replace(recipe, model=change(recipe.model, limits))
        batch, size, unit, optimizer = recipe.text.batch_size, recipe.text.length, "token", recipe.optimizer
        penalised = 2 if recipe.text.contraction else 0
        units = batch * size * recipe.train.accumulate
    else:
        side, config = recipe.data.size, recipe.model
        symbols = side + 1 if isinstance(recipe.data, SudokuDataConfig) else config.num_symbols
        classes = symbols if isinstance(recipe.data, SudokuDataConfig) else config.num_classes
        recipe = fitted(recipe, num_cells=side**2, num_symbols=symbols, num_classes=classes)
        batch, size, unit, optimizer = recipe.supervision.batch_size, side**2, "puzzle", recipe.train.optimizer
        evaluations = recipe.model.segment
        units = batch * recipe.train.accumulate
    with torch.device("meta"):
        model = build(recipe)
    run = Run(
        batch_size=World(size=world_size).share(batch)[1],
        size=size,
        optimizer=optimizer,
        half=recipe.train.precision == "bf16",
        averaged=recipe.train.ema > 0,
        accumulate=recipe.train.accumulate,
        evaluations=evaluations,
        num_penalised=penalised,
        strategy=strategy,
        world_size=world_size,
    )
    return Reckoning(
        recipe=recipe,
        model=model,
        unit=unit,
        size=size,
        evaluations=evaluations,
        units=units,
        steps=recipe.train.num_steps,
        run=run,
        memory=memory(model, run),
    )


def _evaluations(recipe: LanguageRecipe, wanted: int) -> int:
    config = recipe.model
    if isinstance(config, LoopedConfig):
        return config.mean_recurrence
    if not getattr(config, "num_attractor_layers", 0):
        return 1
    return min(max(wanted, config.min_evaluations), config.max_evaluations)


def build(recipe: Recipe) -> Any:
    """Return a new model of a recipe."""
    if isinstance(recipe, LanguageRecipe):
        return AutoModelForCausalLM.from_config(recipe.model)
    return recipe.model.build()


def parameters(model: nn.Module) -> dict[str, int]:
    """Return how the weights divide: those that are looked up, those of layers, and the rest."""
    lookup = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parts = {"embedding": 0}
    for name, p in model.named_parameters():
        if id(p) in lookup:
            part = "embedding"
        elif isinstance(model, LanguageModel) and ".layers." in name:
            repeated = int(name.split(".layers.")[1].split(".")[0]) in model.repeated
            part = "layers, used repeatedly" if repeated else "layers, used once"
        elif not isinstance(model, LanguageModel) and "head" not in name and "halt" not in name:
            part = "layers"
        else:
            part = "the rest"
        parts[part] = parts.get(part, 0) + p.numel()
    return parts


def measure(reckoning: Reckoning) -> Measured | str:
    """Make a few real steps on this machine, of a batch as large as fits; or say in a sentence why not."""
    world = World()
    device, train = world.device, reckoning.recipe.train
    best = peak_flops(device, PRECISIONS[train.precision])
    free, alone = free_memory(device), replace(reckoning.run, accumulate=1, strategy="none", world_size=1)
    batch = reckoning.run.batch_size
    while True:
        run = replace(alone, batch_size=batch)
        estimate = memory(reckoning.model, run).peak
        units = batch * (reckoning.size if reckoning.unit == "token" else 1)
        seconds = STEPS * units * reckoning.flops / (SLOW * best)
        if estimate < 0.9 * free and not seconds > LONGEST:  # unknown where an adjoint solve decides
            break
        if batch == 1:
            if estimate >= 0.9 * free:
                return (
                    f"not measured: even a batch of 1 needs {estimate / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free."
                )
            return f"not measured: even with a batch of 1 it would take about {seconds / 60:.0f} minutes here."
        batch //= 2
    return _measure(reckoning, run, estimate, best, world)


def _measure(reckoning: Reckoning, run: Run, estimate: float, best: float, world: World) -> Measured:
    recipe, device = reckoning.recipe, world.device
    model = build(recipe).to(device).train()
    for p in model.parameters():  # new layers of a language model are the identity, and solved at once
        if p.ndim == 2 and not p.any():
            nn.init.normal_(p, std=0.02)
    objective = _objective(reckoning, model, run.batch_size, world)
    optimizers = run.optimizer.build(model)
    dtype, calls = PRECISIONS[recipe.train.precision], []

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=run.half):
            loss, metrics = objective.step(model)
        calls.append(float(metrics.get("calls", reckoning.evaluations)))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.optimizer.clip)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()

    step()
    kept = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _kept(model, optimizers)}
    average = sum(p.nbytes for p in model.state_dict(keep_vars=True).values()) if run.averaged else 0
    peak = sum(kept.values()) + average + peak_memory(step, device)
    work, seconds = [], []
    for _ in range(STEPS - 2):
        _wait(device)
        begun = time.perf_counter()
        step()
        _wait(device)
        seconds.append(time.perf_counter() - begun)
        work.append(reckoning.training(calls[-1]))
    units = run.batch_size * (reckoning.size if reckoning.unit == "token" else 1)
    rate = units / statistics.median(seconds)
    share = units * sum(work) / sum(seconds) / best
    return Measured(batch_size=run.batch_size, peak=peak, estimate=estimate, rate=rate, mfu=share)


def _objective(reckoning: Reckoning, model: Any, batch: int, world: World) -> Objective:
    recipe = reckoning.recipe
    if isinstance(recipe, LanguageRecipe):
        return NextToken(_Noise(recipe), replace(recipe.text, batch_size=batch), world=world)
    rng, side = np.random.default_rng(0), recipe.data.size
    grids = [
        rng.integers(0, most, (batch, side, side)).astype(np.uint8)
        for most in (recipe.model.num_symbols, recipe.model.num_classes)
    ]
    return DeepSupervision(
        grids[0],
        grids[1],
        replace(recipe.supervision, batch_size=batch),
        start=model.start,
        augment=lambda questions, answers, rng: (questions, answers),
        device=world.device,
        world=world,
    )


class _Noise:
    """Rows of random tokens."""

    def __init__(self, recipe: LanguageRecipe) -> None:
        self._vocab, self._length = recipe.model.vocab_size, recipe.text.length

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        return torch.randint(self._vocab, (num, self._length)), torch.arange(self._length).expand(num, -1)


def _kept(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    states = [s for o in optimizers for state in o.state.values() for s in state.values() if isinstance(s, Tensor)]
    return [*model.parameters(), *model.buffers(), *states]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
