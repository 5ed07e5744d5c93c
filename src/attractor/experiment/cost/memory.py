"""Estimate the memory of a training step from a model's shapes, without making a step; the model may be on the meta device.

Activations are the tensors that autograd saves in our layers, counted operation by operation as CPU kernels save them. Fused
norms on a GPU save less. Workspaces of kernels, compilation and fragmentation are not included. The peak is the largest of three
moments, because the solver's history is freed before the gradients of the loss are computed, and activations before the last ones.

The numbers come from formulas: a training solve cannot be traced with meta or fake tensors, because it reads residuals.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.gradient import Implicit, Phantom, Unrolled
from attractor.models.language import AttractorConfig, LanguageModel, LoopedConfig
from attractor.models.language.attractor import GRADIENTS
from attractor.models.language.loss import CHUNK
from attractor.models.reasoning import TRMDEQ, Reasoner
from attractor.nn import GatedConvolutionUpdate, GridNetwork, SymmetricUpdate, TRMUpdate
from attractor.nn.symmetric import SymmetricLayer
from attractor.optim import OptimizerConfig, SignSGD
from attractor.solve import Anderson

FP32 = 4  # bytes; weights, states and residuals are float32
OPEN_SHARE = 0.35  # of the digits of all cells, which typical clues of a Sudoku leave open
STRATEGIES = ("none", "ddp", "fsdp")
NUM_MOMENTS = {torch.optim.AdamW: 2, torch.optim.Muon: 1, SignSGD: 0}


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """The settings of training that determine its memory.

    ``batch_size`` is that of one process and ``length`` the tokens of a row or the cells of a puzzle;
    ``num_penalty_evaluations`` more evaluations are differentiated by a penalty.
    """

    batch_size: int
    length: int
    optimizer: OptimizerConfig
    bf16: bool
    ema: bool
    accumulate: int = 1
    evaluations: int = 8
    num_penalty_evaluations: int = 0
    strategy: str = "none"
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"strategy {self.strategy!r}: {suggestion(self.strategy, STRATEGIES)}")

    @property
    def product_bytes(self) -> int:
        """Bytes per element of the inputs of matrix products."""
        return 2 if self.bf16 else FP32


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device. ``solver_history`` is freed before ``evaluation_activations`` and ``logits`` are allocated.

    ``early_gradients`` exist before the backward pass begins: accumulated ones, or DDP's buckets. ``step_buffer`` is the
    temporary memory of the optimizer's step.
    """

    weights: float
    ema_weights: float
    optimizer: float
    gradients: float
    gathered_weights: float
    bf16_weights: float
    backbone_activations: float
    evaluation_activations: float
    logits: float
    solver_history: float
    early_gradients: float
    step_buffer: float

    @property
    def peak(self) -> float:
        """The largest of three moments: during the solve, at the loss, and at the end of the backward pass."""
        permanent = self.weights + self.ema_weights + self.optimizer
        forward = self.gathered_weights + self.bf16_weights + self.backbone_activations + self.early_gradients
        solve = forward + self.solver_history
        loss = forward + self.evaluation_activations + self.logits
        return permanent + max(solve, loss, self.gradients + self.step_buffer)


def estimate_memory(model: nn.Module, setup: TrainingSetup) -> Memory:
    """Estimate the memory of a training step of ``model``, a language model or a reasoner."""
    assert isinstance(model, LanguageModel | Reasoner)
    parameters = [p for p in model.parameters() if p.requires_grad]
    num, num_trained = (sum(p.numel() for p in each) for each in (model.parameters(), parameters))
    buffers = sum(b.numel() for b in model.buffers())
    moments = sum(
        NUM_MOMENTS[type(optimizer)] * p.numel()
        for optimizer in setup.optimizer.build(model)
        for group in optimizer.param_groups
        for p in group["params"]
    )
    is_sharded = setup.strategy == "fsdp" and setup.world_size > 1
    shards = setup.world_size if is_sharded else 1
    accumulates = setup.accumulate > 1
    gradients = FP32 * (
        num_trained if accumulates else num_trained / shards
    )  # accumulated gradients are sharded in the last batch only
    has_buckets = setup.strategy == "ddp" and setup.world_size > 1
    activations = _language_activations if isinstance(model, LanguageModel) else _reasoner_activations
    backbone, evaluation, logits, history = activations(model, setup)
    return Memory(
        weights=FP32 * (num / shards + buffers),
        ema_weights=FP32 * (num / shards + buffers) * setup.ema,
        optimizer=FP32 * moments / shards,
        gradients=gradients,
        gathered_weights=FP32 * _num_gathered(model) if is_sharded else 0.0,
        bf16_weights=2.0 * sum(p.numel() for p in parameters if p.ndim >= 2) * setup.bf16,
        backbone_activations=backbone,
        evaluation_activations=evaluation,
        logits=logits,
        solver_history=history,
        early_gradients=gradients if accumulates else FP32 * num_trained * has_buckets,
        step_buffer=FP32 * max(p.numel() for p in parameters) / shards,
    )


def _num_gathered(model: LanguageModel | Reasoner) -> float:
    """Return the number of weights that FSDP gathers at a time: two consecutive layers, the solve's layers, and the rest."""
    num = sum(p.numel() for p in model.parameters())
    if isinstance(model, Reasoner):
        return num
    units = [(sum(p.numel() for m in modules for p in m.parameters()), stays) for modules, stays in model.fsdp_units()]
    resharded = sorted((count for count, stays in units if not stays), reverse=True)
    return num - sum(resharded[2:])


def _language_activations(model: Any, setup: TrainingSetup) -> tuple[float, float, float, float]:
    """Return bytes of activations outside and inside differentiated evaluations, of logits, and of the solver's history."""
    config, element = model.config, setup.product_bytes
    tokens = setup.batch_size * setup.length
    width, hidden = config.hidden_size, config.intermediate_size
    heads, kv_heads = (n * config.head_width for n in (config.num_attention_heads, config.num_kv_heads))
    is_gated = config.hidden_act == "silu"
    mlp = (4 if is_gated else 2) * element * hidden
    # Inputs of matrix products: in bf16 each product saves its own copy, in float32 two or three share one.
    layer = 16 * width + (2 * (5 if is_gated else 4) if setup.bf16 else 8) * width + mlp
    # Queries and keys before and after their norm, values, and the output of attention.
    layer += (8 * config.qk_norm + 2 * element) * (heads + kv_heads)
    # Embedding, proposal, solution, the last norm and a copy for the loss; rotary angles.
    ends = 28 * width + 8 * config.head_width
    chunk = min(CHUNK, tokens)
    logits = chunk * config.vocab_size * 3 * FP32 + 2 * element * width * chunk
    is_temporary = setup.accumulate == 1 and model.lm_head.weight.requires_grad
    logits += config.vocab_size * width * (FP32 + 2 * setup.bf16) * is_temporary
    num_single, num_passes, per_pass = config.num_hidden_layers, 0, 0.0
    history, gradient = 0.0, None
    if isinstance(config, AttractorConfig) and config.num_attractor_layers:
        gradient = GRADIENTS[config.gradient]
        num_single -= config.num_attractor_layers
        num_passes = gradient.steps if isinstance(gradient, Phantom) else 1
        num_passes = setup.evaluations if isinstance(gradient, Unrolled) else num_passes
        layer_scale = 2 * element * width
        per_pass = config.num_attractor_layers * (layer + layer_scale) + FP32 * width
        history = (2 * min(config.window, setup.evaluations) + 8) * FP32 * width + element * 3 * hidden
    elif isinstance(config, LoopedConfig):
        num_single -= config.num_core_layers
        num_passes = min(config.tracked_recurrence, setup.evaluations)
        per_pass = config.num_core_layers * layer + 2 * FP32 * width
        history = 6 * FP32 * width + element * 3 * hidden
    evaluation = (num_passes + setup.num_penalty_evaluations) * per_pass
    if isinstance(gradient, Unrolled):
        evaluation += num_passes * 5 * FP32 * width  # the solver's own step: states, differences and their mixture
    if isinstance(gradient, Implicit):
        evaluation += history  # of the adjoint solve in the backward pass
    if model.single_passes(num_single) == num_single:  # all frozen, so that nothing is saved for gradients
        num_single = 0
    return tokens * (num_single * layer + ends), tokens * evaluation, float(logits), tokens * history


def _reasoner_activations(model: Any, setup: TrainingSetup) -> tuple[float, float, float, float]:
    """Return bytes of carried states, of differentiated evaluations, of logits, and of the solver's history."""
    config = model.config
    device = next(model.parameters()).device
    cells = setup.batch_size * setup.length
    side = math.isqrt(setup.length)
    questions = torch.zeros(1, side, side, dtype=torch.long, device=device)
    state = FP32 * model.init_state(questions).shape[-1]  # per cell
    per_evaluation, width = _evaluation_activations(model, setup)
    carried = 4 * state + 2 * FP32 * width + 64  # states before and after, the embedded question, integers
    gradient, solver = model.gradient, model.solver
    history = 2 * min(solver.window, setup.evaluations) + 1 if isinstance(solver, Anderson) else 0
    num_tracked = (gradient.steps if isinstance(gradient, Phantom) else 1) + setup.num_penalty_evaluations
    evaluation = num_tracked * (per_evaluation + state)
    if isinstance(gradient, Implicit):
        evaluation += state * 18  # the adjoint solve in the backward pass
    logits = setup.product_bytes * width + 6 * FP32 * config.num_classes
    solving = state * (6 + history) + per_evaluation / 4
    return cells * carried, cells * evaluation, float(cells * logits), cells * solving


def _evaluation_activations(model: Reasoner, setup: TrainingSetup) -> tuple[float, int]:
    """Return the bytes per cell that the backward pass of one evaluation needs, and the width."""
    for module in model.children():
        if isinstance(module, GatedConvolutionUpdate):
            hidden, width = module.outer.in_features, module.vertical.in_channels
            return setup.product_bytes * (2 * hidden + width) + 2 * FP32 * width, width  # of the gate and the candidate
        if isinstance(module, SymmetricUpdate):
            layers = [layer for layer in module.modules() if isinstance(layer, SymmetricLayer)]
            digits, width = math.isqrt(setup.length), layers[0].mlp.down_proj.out_features
            return digits * sum(_digit_activations(layer, setup) for layer in layers), digits * width
        if isinstance(module, TRMUpdate):
            return (module.num_latent + 1) * _network_activations(module.net, setup), module.net.config.width
    networks = [module for module in model.children() if isinstance(module, GridNetwork)]
    calls = model.config.num_latent + 1 if isinstance(model, TRMDEQ) else 1
    return calls * sum(_network_activations(network, setup) for network in networks), networks[0].config.width


def _digit_activations(layer: SymmetricLayer, setup: TrainingSetup) -> float:
    """Return the bytes per digit of a cell: the state, the input of the MLP, its hidden values, and its output."""
    hidden, width = layer.mlp.down_proj.in_features, layer.mlp.down_proj.out_features
    is_open = OPEN_SHARE * (2 * FP32 * width + (4 * (FP32 + 2 * setup.bf16)) * width + 4 * setup.product_bytes * hidden)
    return is_open + FP32 * width


def _network_activations(network: GridNetwork, setup: TrainingSetup) -> float:
    config, element = network.config, setup.product_bytes
    mlp = (element + FP32) * config.width + 4 * element * config.hidden
    mixing: float = (element + FP32) * config.width
    if config.mixing == "mixer":
        mixing += 4 * element * config.cell_hidden * config.width / config.num_cells
    elif config.mixing == "attention":  # queries, keys and values before and after rotation; the output of attention
        mixing += 6 * element * config.width + FP32 * config.num_heads
    return config.num_layers * (mixing + mlp)
