"""What a training step keeps in memory, by arithmetic: from a model on any device, also ``meta``, without a step being made.

Activations are what autograd saves in our layers, counted operation by operation as a processor's kernels save it; fused norms on
a GPU save less, and kernels' scratch space, compilation and fragmentation come on top. What is freed before something else is there
does not count with it: the solver's history is gone when the tracked evaluations and the logits come, and activations are gone when
the last gradients come. The peak is the largest of these three moments.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.gradient import Implicit, Phantom, Unrolled
from attractor.models.language import AttractorConfig, LanguageModel, LoopedConfig
from attractor.models.language.attractor import GRADIENTS
from attractor.models.language.base import CHUNK
from attractor.models.reasoning import Reasoner
from attractor.nn import ConvolutionUpdate, GridNetwork, TRMUpdate
from attractor.optim import OptimizerConfig
from attractor.solve import Anderson

WIDE = 4  # bytes of a float32, in which weights, states and residuals are kept
STRATEGIES = ("none", "ddp", "fsdp")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a model is trained, as far as memory goes.

    Attributes
    ----------
    batch_size
        Rows or puzzles of one process's part of a batch.
    size
        Tokens of a row, or cells of a puzzle.
    half
        Whether matrix products are in bf16 under autocast.
    evaluations
        Of one solve.
    num_penalised
        Evaluations that a penalty tracks beside.
    strategy, world_size
        ``"none"``, ``"ddp"`` or ``"fsdp"``, on so many devices.
    """

    batch_size: int
    size: int
    optimizer: OptimizerConfig
    half: bool
    averaged: bool
    accumulate: int = 1
    evaluations: int = 8
    num_penalised: int = 0
    strategy: str = "none"
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"strategy {self.strategy!r}: {suggestion(self.strategy, STRATEGIES)}")

    @property
    def narrow(self) -> int:
        """Bytes of a number that goes into a matrix product."""
        return 2 if self.half else WIDE


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device. ``solving`` is there before ``tracked`` and ``logits`` are."""

    weights: float
    averaged: float
    optimizer: float
    gradients: float
    gathered: float
    cast: float
    backbone: float
    tracked: float
    logits: float
    solving: float
    early: float  # gradients that are there before a way back begins
    moving: float  # what the optimisers' step needs besides

    @property
    def peak(self) -> float:
        """At the worst of three moments: a solve, the loss, and the end of the way back."""
        fixed = self.weights + self.averaged + self.optimizer
        passing = self.gathered + self.cast + self.backbone
        loss = passing + self.early + self.tracked + self.logits
        return fixed + max(passing + self.early + self.solving, loss, self.gradients + self.moving)


def memory(model: nn.Module, run: Run) -> Memory:
    """Return what a training step of ``model``, a language model or a reasoner, keeps."""
    assert isinstance(model, LanguageModel | Reasoner)
    parameters = [p for p in model.parameters() if p.requires_grad]
    num = sum(p.numel() for p in parameters)
    buffers = sum(b.numel() for b in model.buffers())
    matrices = sum(p.numel() for p in parameters if p.ndim >= 2)
    largest = max(p.numel() for p in parameters)
    moments = {torch.optim.AdamW: 2, torch.optim.Muon: 1}
    state = sum(
        moments[type(optimizer)] * p.numel()
        for optimizer in run.optimizer.build(model)
        for group in optimizer.param_groups
        for p in group["params"]
    )
    divided = run.strategy == "fsdp" and run.world_size > 1
    share = run.world_size if divided else 1
    whole = num if run.accumulate > 1 else num / share  # accumulated gradients are divided only at the last batch
    buckets = run.strategy == "ddp" and run.world_size > 1
    if isinstance(model, LanguageModel):
        backbone, tracked, logits, solving = _language(model, run)
    else:
        backbone, tracked, logits, solving = _reasoner(model, run)
    return Memory(
        weights=WIDE * (num / share + buffers),
        averaged=WIDE * (num / share + buffers) * run.averaged,
        optimizer=WIDE * state / share,
        gradients=WIDE * whole,
        gathered=WIDE * _gathered(model) if divided else 0.0,
        cast=2.0 * matrices * run.half,
        backbone=backbone,
        tracked=tracked,
        logits=logits,
        solving=solving,
        early=WIDE * (whole if run.accumulate > 1 else num if buckets else 0),
        moving=WIDE * largest / share,
    )


def _gathered(model: LanguageModel | Reasoner) -> float:
    """Weights that are whole at a time where they are divided among devices: a layer and the next, those of the solve, the rest."""
    if isinstance(model, Reasoner):
        return sum(p.numel() for p in model.parameters())
    units = [(sum(p.numel() for m in modules for p in m.parameters()), stays) for modules, stays in model.fsdp_units()]
    passing = sorted((count for count, stays in units if not stays), reverse=True)[:2]
    in_units = sum(count for count, _ in units)
    return sum(passing) + sum(c for c, stays in units if stays) + sum(p.numel() for p in model.parameters()) - in_units


def _language(model: LanguageModel, run: Run) -> tuple[float, float, float, float]:
    config, narrow = model.config, run.narrow
    tokens = run.batch_size * run.size
    width, hidden = config.hidden_size, config.intermediate_size
    heads, kv_heads = (n * config.head_width for n in (config.num_attention_heads, config.num_kv_heads))
    per_mlp = (4 if config.hidden_act == "silu" else 2) * narrow * hidden
    # Of products, each cast for itself; in float32 shared by two or three.
    inputs = 5 if config.hidden_act == "silu" else 4
    layer = 16 * width + (2 * inputs if run.half else 8) * width + per_mlp
    # Normed, then what attention sees; values; the output.
    layer += (8 * config.qk_norm + 2 * narrow) * (heads + kv_heads)
    gates = 2 * narrow * width
    # Embedding, proposal, solution, last norm and a copy for the loss; rotary angles.
    ends = 28 * width + 8 * config.head_width
    chunk = min(CHUNK, tokens)
    logits = chunk * config.vocab_size * 3 * WIDE + 2 * narrow * width * chunk
    logits += config.vocab_size * width * (WIDE + (2 if run.half else 0)) * (run.accumulate == 1)
    once, passes, per_pass = config.num_hidden_layers, 0, 0.0
    history, gradient = 0.0, None
    if isinstance(config, AttractorConfig) and config.num_attractor_layers:
        gradient = GRADIENTS[config.gradient]
        once -= config.num_attractor_layers
        passes = gradient.steps if isinstance(gradient, Phantom) else 1
        passes = run.evaluations if isinstance(gradient, Unrolled) else passes
        per_pass = config.num_attractor_layers * (layer + gates) + WIDE * width
        history = (2 * min(config.window, run.evaluations) + 8) * WIDE * width + narrow * 3 * hidden
    elif isinstance(config, LoopedConfig):
        once -= config.num_core_layers
        passes = min(config.tracked_recurrence, run.evaluations)
        per_pass = config.num_core_layers * layer + 2 * WIDE * width
        history = 6 * WIDE * width + narrow * 3 * hidden
    tracked = (passes + run.num_penalised) * per_pass
    if isinstance(gradient, Unrolled):
        tracked += passes * 5 * WIDE * width  # of the solver's own step: points, steps, and what is mixed
    if isinstance(gradient, Implicit):
        tracked += history  # of the adjoint solve, on the way back
    return tokens * (once * layer + ends), tokens * tracked, float(logits), tokens * history


def _reasoner(model: Reasoner, run: Run) -> tuple[float, float, float, float]:
    config: Any = model.config
    device = next(model.parameters()).device
    cells = run.batch_size * run.size
    state = WIDE * model.init_state(torch.zeros(1, 1, run.size, dtype=torch.long, device=device)).shape[-1]  # of a cell
    per_evaluation, width = _evaluation(model, run)
    carried = 4 * state + 2 * WIDE * width + 64  # states before and after, the embedded question, integers
    gradient, solver = model.gradient, model.solver
    history = 2 * min(solver.window, run.evaluations) + 1 if isinstance(solver, Anderson) else 0
    tracked = (gradient.steps if isinstance(gradient, Phantom) else 1) + run.num_penalised
    kept = tracked * (per_evaluation + state)
    if isinstance(gradient, Implicit):
        kept += state * 18  # of the adjoint solve, on the way back
    logits = run.narrow * width + 6 * WIDE * config.num_classes
    solving = state * (6 + history) + per_evaluation / 4
    return cells * carried, cells * kept, float(cells * logits), cells * solving


def _evaluation(model: Reasoner, run: Run) -> tuple[float, int]:
    """Bytes that the way back needs of a tracked evaluation, for each cell; and the width."""
    for module in model.children():
        if isinstance(module, ConvolutionUpdate):
            width = module.inner.in_channels
            return (3 * run.narrow + WIDE) * width, width
        if isinstance(module, TRMUpdate):
            return (module.num_latent + 1) * _cells(module.net, run), module.net.config.width
    networks = [module for module in model.children() if isinstance(module, GridNetwork)]  # each is tracked once
    return sum(_cells(network, run) for network in networks), networks[0].config.width


def _cells(network: GridNetwork, run: Run) -> float:
    config, narrow = network.config, run.narrow
    width = config.width
    mlp = (narrow + WIDE) * width + 4 * narrow * config.hidden
    mix: float = (narrow + WIDE) * width
    if config.mixing == "mixer":
        mix += 4 * narrow * config.cell_hidden * width / config.num_cells
    elif config.mixing == "attention":  # queries, keys and values before and after they are turned, and what is seen
        mix += 6 * narrow * width + WIDE * config.num_heads
    return config.num_layers * (mix + mlp)
