"""What a recipe costs, reckoned from its settings and, on a scale that fits, measured by real steps."""

import statistics
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from attractor.config import change
from attractor.errors import ConfigError
from attractor.experiment.cost.device import free_memory, peak_flops
from attractor.experiment.cost.memory import Memory, Run, memory
from attractor.experiment.cost.step_benchmark import StepBenchmark, build, with_batch
from attractor.models.language import LanguageModel, LoopedConfig
from attractor.objectives import split_batch
from attractor.recipes import LanguageRecipe, Recipe, SudokuDataConfig, fit_to_puzzles
from attractor.training import PRECISIONS, DistributedContext

LONGEST = 60.0  # seconds that measuring may take
SLOW = 0.1  # the share of its peak that a device is expected to reach at least
STEPS = 4  # one to warm up, one for memory, two for time


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
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
class MeasuredCost:
    """Of real steps of ``batch_size`` on this machine: bytes at their peak, and as estimated; units a second; and MFU."""

    batch_size: int
    peak: float
    estimate: float
    rate: float
    mfu: float


def estimate_cost(recipe: Recipe, *, evaluations: int, world_size: int = 1, strategy: str = "none") -> CostEstimate:
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
        penalised = 2 if recipe.text.contraction_penalty else 0
        units = batch * size * recipe.train.accumulate
    else:
        side, config = recipe.data.size, recipe.model
        symbols = side + 1 if isinstance(recipe.data, SudokuDataConfig) else config.num_symbols
        classes = symbols if isinstance(recipe.data, SudokuDataConfig) else config.num_classes
        recipe = fit_to_puzzles(recipe, num_cells=side**2, num_symbols=symbols, num_classes=classes)
        batch, size, unit, optimizer = recipe.supervision.batch_size, side**2, "puzzle", recipe.train.optimizer
        evaluations = recipe.model.evaluations_per_segment
        units = batch
    with torch.device("meta"):
        model = build(recipe)
    run = Run(
        batch_size=split_batch(batch, 0, world_size)[1],
        size=size,
        optimizer=optimizer,
        half=recipe.train.precision == "bf16",
        averaged=recipe.train.ema_decay > 0,
        accumulate=recipe.train.accumulate,
        evaluations=evaluations,
        num_penalised=penalised,
        strategy=strategy,
        world_size=world_size,
    )
    return CostEstimate(
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


def parameters(model: nn.Module) -> dict[str, int]:
    """Return how the weights divide: those that are looked up, those of layers, and the rest."""
    lookup = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    parts = {"embedding": 0}
    for name, p in model.named_parameters():
        if id(p) in lookup:
            part = "embedding"
        elif isinstance(model, LanguageModel) and ".layers." in name:
            repeated = int(name.split(".layers.")[1].split(".")[0]) in model.recurrent_layers
            part = "layers, used repeatedly" if repeated else "layers, used once"
        elif not isinstance(model, LanguageModel) and "head" not in name and "halt" not in name:
            part = "layers"
        else:
            part = "the rest"
        parts[part] = parts.get(part, 0) + p.numel()
    return parts


def measure_cost(reckoning: CostEstimate) -> MeasuredCost | str:
    """Make a few real steps on this machine, of a batch as large as fits; or say in a sentence why not."""
    device = DistributedContext().device
    best = peak_flops(device, PRECISIONS[reckoning.recipe.train.precision])
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
    return _measure(reckoning, run, estimate, best)


def _measure(reckoning: CostEstimate, run: Run, estimate: float, best: float) -> MeasuredCost:
    trial = StepBenchmark(with_batch(reckoning.recipe, run.batch_size, accumulate=1))
    trial.step()
    peak = trial.peak()
    seconds = [trial.timed()[0] for _ in range(STEPS - 2)]
    work = [reckoning.training(calls) for calls in trial.calls[2:]]
    units = run.batch_size * (reckoning.size if reckoning.unit == "token" else 1)
    rate = units / statistics.median(seconds)
    share = units * sum(work) / sum(seconds) / best
    return MeasuredCost(batch_size=run.batch_size, peak=peak, estimate=estimate, rate=rate, mfu=share)
