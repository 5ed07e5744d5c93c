"""Estimate what training a recipe costs, from its settings alone: parameters, operations, memory and time."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from attractor.config import change
from attractor.errors import ConfigError
from attractor.experiment.cost.memory import Memory, TrainingSetup, estimate_memory
from attractor.experiment.device import PEAK_FLOPS
from attractor.files import json_safe
from attractor.models.language import LanguageModel, LoopedConfig
from attractor.objectives import split_batch
from attractor.optim import freeze
from attractor.recipes import LanguageRecipe, PuzzleRecipe, Recipe, SudokuDataConfig, fit_to_puzzles

EXPECTED_MFU = 0.4
DAY = 86_400  # seconds
H100_BYTES = 80e9


@dataclass(frozen=True, kw_only=True)
class MeasuredCost:
    """Real training steps on this machine: measured and estimated peak memory in bytes, and units per second.

    ``batch_size`` is smaller than the recipe's when that is too much for the machine.
    """

    batch_size: int
    peak: float
    estimate: float
    rate: float
    mfu: float


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The cost of training a recipe. ``str()`` gives a readable summary.

    Attributes
    ----------
    recipe
        With a model that makes exactly ``evaluations`` per solve.
    model
        On the meta device: shapes only.
    unit
        What is counted: ``"token"``, or ``"puzzle"`` (one supervision segment of one puzzle).
    units_per_step
        Over all processes.
    num_steps
        None when the recipe limits time instead.
    setup, memory
        Of one process.
    """

    recipe: Recipe
    model: Any
    unit: str
    evaluations: int
    units_per_step: int
    num_steps: int | None
    setup: TrainingSetup
    memory: Memory
    measured: MeasuredCost | None = None
    not_measured: str = "not requested."

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters by part: embedding, layers used once or repeatedly, and all other ones."""
        embeddings = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}
        is_language = isinstance(self.model, LanguageModel)
        parts = {"embedding": 0}
        for name, p in self.model.named_parameters():
            if id(p) in embeddings:
                part = "embedding"
            elif is_language and ".layers." in name:
                is_recurrent = int(name.split(".layers.")[1].split(".")[0]) in self.model.recurrent_layers
                part = "layers, used repeatedly" if is_recurrent else "layers, used once"
            else:
                part = "other" if is_language or "head" in name or "halt" in name else "layers"
            parts[part] = parts.get(part, 0) + p.numel()
        return parts

    @property
    def total_flops(self) -> float | None:
        """Floating-point operations of the complete run; None when the recipe limits time instead."""
        return None if self.num_steps is None else self.flops() * self.units_per_step * self.num_steps

    def flops(self, evaluations: float | None = None, *, training: bool = True) -> float:
        """Return the operations per unit of training, or per token or puzzle of a forward pass."""
        count = self.model.flops_per_token if isinstance(self.model, LanguageModel) else self.model.flops_per_puzzle
        n = self.evaluations if evaluations is None else evaluations
        return float(count(self.setup.length, n, training=training))

    def days(self, device: str, mfu: float = EXPECTED_MFU) -> float | None:
        """Return the days of the complete run on devices named in ``PEAK_FLOPS``; None when the recipe limits time."""
        if self.total_flops is None:
            return None
        return self.total_flops / (PEAK_FLOPS[device] * mfu * self.setup.world_size) / DAY

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain data for JSON."""
        plain: dict[str, Any] = json_safe(
            {
                "parameters": self.parameters,
                "evaluations": self.evaluations,
                "world_size": self.setup.world_size,
                "strategy": self.setup.strategy,
                "flops_per_unit": {
                    "unit": self.unit,
                    "forward": self.flops(training=False),
                    "training": self.flops(),
                },
                "num_steps": self.num_steps,
                "units_per_step": self.units_per_step,
                "total_flops": self.total_flops,
                "memory": {**asdict(self.memory), "peak": self.memory.peak},
                "days": {device: self.days(device) for device in PEAK_FLOPS},
                "measured": asdict(self.measured) if self.measured else self.not_measured,
            }
        )
        return plain

    def __str__(self) -> str:
        unit, setup = "token" if self.unit == "token" else "segment", self.setup
        devices = f", each of {setup.world_size} devices ({setup.strategy})" if setup.world_size > 1 else ""
        sections = (
            _table(("parameters", "number"), _parameter_rows(self)),
            _table((f"operations per {self.unit}", "forward", "training"), _flops_rows(self)),
            _table((f"memory with a batch of {setup.batch_size}{devices}", "MB"), _memory_rows(self.memory, self.unit)),
            _table(("time", f"{unit}s/s", "MFU", "complete run"), _time_rows(self)),
            "\n".join(textwrap.fill(line, 80) for line in _remarks(self)),
        )
        return "\n\n".join(sections)


def estimate_cost(recipe: Recipe, *, evaluations: int = 8, world_size: int = 1, strategy: str = "none") -> CostEstimate:
    """Estimate the cost of a recipe without training it; see :func:`attractor.experiment.cost.cost`."""
    if evaluations < 1 or world_size < 1:
        raise ConfigError(f"evaluations={evaluations} and world_size={world_size}: give whole numbers from 1 up.")
    num_penalty = 0
    if isinstance(recipe, LanguageRecipe):
        evaluations = _evaluations(recipe, evaluations)
        limits = {"min_evaluations": evaluations, "max_evaluations": evaluations}
        recipe = replace(recipe, model=change(recipe.model, limits))
        unit, batch_size, length, optimizer = "token", recipe.text.batch_size, recipe.text.length, recipe.optimizer
        num_penalty = 2 if recipe.text.contraction_penalty else 0
        units_per_step = batch_size * length * recipe.train.accumulate
    else:
        side, config = recipe.data.size, recipe.model
        is_sudoku = isinstance(recipe.data, SudokuDataConfig)
        num_symbols, num_classes = (side + 1,) * 2 if is_sudoku else (config.num_symbols, config.num_classes)
        recipe = fit_to_puzzles(recipe, num_cells=side**2, num_symbols=num_symbols, num_classes=num_classes)
        unit, batch_size, length = "puzzle", recipe.supervision.batch_size, side**2
        optimizer, evaluations = recipe.train.optimizer, recipe.model.evaluations_per_segment
        units_per_step = batch_size
    with torch.device("meta"):
        model = build_model(recipe)
    setup = TrainingSetup(
        batch_size=split_batch(batch_size, 0, world_size)[1],
        length=length,
        optimizer=optimizer,
        bf16=recipe.train.precision == "bf16",
        ema=recipe.train.ema_decay > 0,
        accumulate=recipe.train.accumulate,
        evaluations=evaluations,
        num_penalty_evaluations=num_penalty,
        strategy=strategy,
        world_size=world_size,
    )
    return CostEstimate(
        recipe=recipe,
        model=model,
        unit=unit,
        evaluations=evaluations,
        units_per_step=units_per_step,
        num_steps=recipe.train.num_steps,
        setup=setup,
        memory=estimate_memory(model, setup),
    )


def build_model(recipe: Recipe) -> Any:
    """Return a new model of a recipe."""
    model: Any
    if isinstance(recipe, LanguageRecipe):
        model, frozen = AutoModelForCausalLM.from_config(recipe.model), recipe.freeze
    else:
        model, frozen = recipe.model.build(), recipe.train.freeze
    freeze(model, frozen)
    return model


def _evaluations(recipe: LanguageRecipe, expected: int) -> int:
    config = recipe.model
    if isinstance(config, LoopedConfig):
        return config.mean_recurrence
    if not getattr(config, "num_attractor_layers", 0):
        return 1
    return min(max(expected, config.min_evaluations), config.max_evaluations)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text: the first column aligned left, all others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    form = "".join([f"{{:<{max(widths[0], 36)}}}", *(f"  {{:>{width}}}" for width in widths[1:])])
    head, *body = (form.format(*row) for row in (header, *rows))
    return "\n".join([head, "─" * len(head), *body])


def _parameter_rows(estimate: CostEstimate) -> list[tuple[str, str]]:
    parts = estimate.parameters
    return [(part, f"{num:,}") for part, num in {**parts, "total": sum(parts.values())}.items()]


def _flops_rows(estimate: CostEstimate) -> list[tuple[str, str, str]]:
    own, is_token = estimate.evaluations, estimate.unit == "token"
    has_solve = not is_token or len(estimate.model.recurrent_layers) > 0
    rows = []
    for n in sorted({1, 4, own, 2 * own, 4 * own}) if has_solve else (own,):
        training = _flops(estimate.flops(n)) if n == own or is_token else ""
        name = f"{n} evaluation{'s' if n > 1 else ''}{' *' if n == own else ''}"
        rows.append((name, _flops(estimate.flops(n, training=False)), training))
    return rows


def _memory_rows(memory: Memory, unit: str) -> list[tuple[str, str]]:
    sizes = {
        "weights": memory.weights,
        "average of the weights": memory.ema_weights,
        "optimizer state": memory.optimizer,
        "gradients": memory.gradients,
        "gathered weights": memory.gathered_weights,
        "weights in bf16": memory.bf16_weights,
        "activations of layers used once" if unit == "token" else "states and questions": memory.backbone_activations,
        "activations of differentiated evaluations": memory.evaluation_activations,
        "logits and their gradient": memory.logits,
        "solver history (freed before the loss)": memory.solver_history,
        "gradients before the backward pass": memory.early_gradients,
        "temporary memory of the optimizer": memory.step_buffer,
        "peak": memory.peak,
    }
    return [(name, f"{size / 1e6:,.1f}") for name, size in sizes.items() if size]


def _time_rows(estimate: CostEstimate) -> list[tuple[str, str, str, str]]:
    rows, world_size = [], estimate.setup.world_size
    if (real := estimate.measured) is not None:
        steps = estimate.num_steps
        run = None if steps is None else estimate.units_per_step * steps / real.rate
        rows.append(
            (
                "this machine, measured",
                f"{real.rate:,.0f}",
                "–" if math.isnan(real.mfu) else f"{real.mfu:.1%}",
                _duration(run),
            )
        )
    for device in ("H200", "H100", "A100"):
        rate = EXPECTED_MFU * PEAK_FLOPS[device] * world_size / estimate.flops()
        days = estimate.days(device)
        number = f"{world_size} × " if world_size > 1 else ""
        duration = _duration(None if days is None else days * DAY)
        rows.append((f"{number}{device}, estimated", f"{rate:,.0f}", f"{EXPECTED_MFU:.0%}", duration))
    return rows


def _remarks(estimate: CostEstimate) -> list[str]:
    setup, units = estimate.setup, estimate.units_per_step
    if estimate.unit == "token":
        lines = [f"* expected per solve. A row has {setup.length:,} tokens, a step {units:,} tokens."]
    else:
        lines = [
            f"* per supervision segment. A step is one segment of {units:,} puzzles with {setup.length} cells each."
        ]
    if depends_on_clues(estimate.recipe):
        lines.append(
            "Operations are those of a puzzle without clues; the update computes only the digits that clues leave open."
        )
    if estimate.total_flops is not None:
        lines.append(f"The complete run: {estimate.num_steps:,} steps, {_flops(estimate.total_flops)}.")
    else:
        lines.append(f"The recipe limits time: {_duration(estimate.recipe.train.seconds)} of training.")
    if estimate.memory.peak > H100_BYTES:
        fix = "text.batch_size and raise train.accumulate" if estimate.unit == "token" else "supervision.batch_size"
        lines.append(f"This exceeds the memory of an H100: lower {fix}, or add devices.")
    if (real := estimate.measured) is None:
        return [*lines, f"Not measured: {estimate.not_measured}"]
    lines.append(
        f"Measured with a batch of {real.batch_size}: peak memory {real.peak / 1e6:,.1f} MB, "
        f"estimated {real.estimate / 1e6:,.1f} MB ({real.estimate / real.peak:.2f} times)."
    )
    if real.batch_size < setup.batch_size:
        lines.append("This batch is smaller than the recipe's, which exceeds this machine's memory or a minute.")
    return lines


def depends_on_clues(recipe: Recipe) -> bool:
    return isinstance(recipe, PuzzleRecipe) and recipe.model.cost_depends_on_clues


def _flops(number: float) -> str:
    return _with_unit(number, {"EFLOP": 1e18, "PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6}, 2, "unknown")


def _duration(seconds: float | None) -> str:
    seconds = math.nan if seconds is None else seconds
    return _with_unit(seconds, {"days": DAY, "hours": 3600, "minutes": 60, "seconds": 1}, 1, "–")


def _with_unit(number: float, units: dict[str, float], digits: int, unknown: str) -> str:
    """Format a number in the largest unit that it reaches, or else in the last one."""
    unit = next((name for name, size in units.items() if number >= size), list(units)[-1])
    return unknown if math.isnan(number) else f"{number / units[unit]:,.{digits}f} {unit}"
