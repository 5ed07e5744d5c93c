"""The cost of a recipe: estimated from its settings and, on request, measured with real steps."""

from attractor.errors import ConfigError
from attractor.experiment.cost.estimate import CostEstimate, MeasuredCost, estimate_cost
from attractor.experiment.cost.memory import Memory
from attractor.experiment.cost.step_benchmark import StepBenchmark, measure_cost
from attractor.experiment.device import PEAK_FLOPS
from attractor.recipes import FROM_CHECKPOINT, Recipe
from attractor.recipes import get as get_recipe


def cost(
    recipe: str | Recipe,
    *,
    evaluations: int = 8,
    world_size: int = 1,
    strategy: str | None = None,
    measure: bool = False,
) -> CostEstimate:
    """Estimate what training a recipe costs: parameters, operations, memory and time. ``print`` the result for a summary.

    Parameters
    ----------
    evaluations
        Expected per solve of a language model, clipped to the recipe's limits. Looped models and reasoners have
        their own numbers.
    strategy
        ``"ddp"`` or ``"fsdp"``, with several processes; the recipe's ``train.parallel`` by default.
    measure
        Also make a few real steps on random data, within about a minute, with a smaller batch if necessary.

    Raises
    ------
    ConfigError
        For a recipe that is unknown or has no sizes of its own, and a batch that the processes cannot divide.
    """
    if isinstance(recipe, str) and recipe in FROM_CHECKPOINT:
        raise ConfigError(f"{recipe} takes its sizes from a checkpoint; choose a recipe that has its own sizes.")
    settings = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if strategy is not None and world_size == 1:
        raise ConfigError(f"strategy={strategy!r} needs several processes; give world_size too.")
    shared = "none" if world_size == 1 else strategy or settings.train.parallel
    estimate = estimate_cost(settings, evaluations=evaluations, world_size=world_size, strategy=shared)
    return measure_cost(estimate) if measure else estimate


__all__ = [
    "PEAK_FLOPS",
    "CostEstimate",
    "MeasuredCost",
    "Memory",
    "StepBenchmark",
    "cost",
    "estimate_cost",
    "measure_cost",
]
