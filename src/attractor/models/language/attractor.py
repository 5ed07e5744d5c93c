"""The attractor language model: a backbone proposes output embeddings, and a few weight-tied layers refine them to a
fixed point.

With ``F`` the attractor layers, ``c`` the proposal and ``h = (y + c)/2``::

    update(y) = c + (F(h) − h)      injection="mean"
    update(y) = F(y + c) − y        injection="sum"   (the official code)
    update(y) = F(W [y, c])         injection="concat", with a matrix W that is learnt
    update(y) = F(y)                injection="none": the proposal is the start and nothing else

The last two are the paper's ablations, of which it gives no equations. With ``mean``, one evaluation from the proposal
is exactly the plain Transformer with all layers, and zero evaluations are the Transformer without the last layers.
``num_attractor_layers=0`` is that plain Transformer. With only attractor layers and ``start="zero"`` the model is a deep
equilibrium model: hidden states from zero, without a proposal.

Source: "Solve the Loop", arXiv:2605.12466; the ``mean`` injection is ours.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from attractor.config import require_positive, require_whole, suggestion
from attractor.errors import ConfigError
from attractor.gradient import Gradient, Implicit, Neumann, OneStep, Phantom, Unrolled, spectral_radius
from attractor.layer import fixed_point
from attractor.models.language.base import LanguageModel, LanguageModelOutput
from attractor.models.language.config import LanguageModelConfig
from attractor.models.language.decoder import Decoder
from attractor.models.language.inference.context import AttentionContext, TokenContext
from attractor.models.language.inference.sparse_update import SparseUpdate
from attractor.nn.transformer import LayerScale, ZeroInitLinear
from attractor.solve import Anderson, Outcome, Solution, Status, Steps, StopRule, Tolerance, Update, is_synchronized

GRADIENTS: dict[str, Gradient] = {
    "one-step": OneStep(),
    "neumann": Neumann(1),
    "phantom": Phantom(steps=4),
    "implicit": Implicit(),
    "unrolled": Unrolled(),
}
STARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "proposal": lambda proposal: proposal,
    "zero": torch.zeros_like,
    "gaussian": torch.randn_like,
}


class AttractorConfig(LanguageModelConfig):
    """Adds to the decoder's sizes how the model is solved.

    Attributes
    ----------
    num_attractor_layers
        How many of ``num_hidden_layers``, the last, are the attractor; 0 is a plain Transformer.
    injection
        ``"mean"``, ``"sum"``, ``"concat"`` or ``"none"``, see the equations at the top of this file.
    start
        ``"proposal"``, ``"zero"`` for a deep equilibrium model, or ``"gaussian"``, a new draw of N(0, 1) in every solve.
    gate_start, gate_limit
        LayerScale on the attractor's branches: factors start at ``gate_start`` (at most 0.98 of the limit) and stay
        below ``gate_limit``.
    zero_init_attractor
        Whether the output projections of the attractor's layers start at zero, so that each layer is the identity.
        False draws them from a normal distribution of variance ``2/(5 D)``, cut at three standard deviations, as the
        official code does: the gates then get a gradient in the first step.
    window, mixing
        Of Anderson's method.
    gradient
        ``one-step``, ``neumann``, ``phantom``, ``implicit`` or ``unrolled``. The adjoint of ``implicit`` is solved with
        the solver, the tolerance and the limits of the solve.
    adjoint_clip
        The ``clip`` of the gradient ``neumann``.
    training_min_converged_fraction
        In training without padding, a solve ends when this share of tokens is below tolerance or has stagnated.
    check_every
        In training, evaluations between two convergence checks. A check waits for the GPU. Rare checks cost evaluations
        and save waits; a value of ``max_evaluations`` saves all waits.
    """

    model_type = "attractor"

    num_attractor_layers: int = 1
    injection: str = "mean"
    start: str = "proposal"
    gate_start: float = 0.7
    gate_limit: float = 1.0
    zero_init_attractor: bool = True
    window: int = 5
    mixing: float = 1.0
    gradient: str = "one-step"
    adjoint_clip: float | None = None
    training_min_converged_fraction: float = 0.95
    check_every: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        require_whole(self, 0, "num_attractor_layers")
        if self.num_attractor_layers > self.num_hidden_layers:
            raise ConfigError(
                f"num_attractor_layers={self.num_attractor_layers} exceeds num_hidden_layers={self.num_hidden_layers}."
            )
        for name, valid in {
            "injection": ("mean", "sum", "concat", "none"),
            "start": tuple(STARTS),
            "gradient": tuple(GRADIENTS),
        }.items():
            if getattr(self, name) not in valid:
                raise ConfigError(f"{name}={getattr(self, name)!r}: {suggestion(str(getattr(self, name)), valid)}")
        require_whole(self, 1, "check_every")
        if not 0 < self.training_min_converged_fraction <= 1:
            raise ConfigError(
                f"training_min_converged_fraction={self.training_min_converged_fraction}: the share must lie in (0, 1]."
            )
        Anderson(window=self.window, mixing=self.mixing)  # refuses what it cannot use
        require_positive(self, "gate_start", "gate_limit")
        if self.adjoint_clip is not None:
            require_positive(self, "adjoint_clip")
            if self.gradient != "neumann":
                raise ConfigError(f"adjoint_clip={self.adjoint_clip}: clips the terms of gradient='neumann' only.")
        if self.gate_start > self.gate_limit:
            raise ConfigError(f"gate_start={self.gate_start} must lie in (0, gate_limit={self.gate_limit}].")
        super().__post_init__(**kwargs)


class Concatenation(nn.Linear):
    """The matrix ``W`` of ``W [y, c]``, which starts as the mean of the two."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, width, bias=False)

    def reset_parameters(self) -> None:
        half = torch.eye(self.out_features, device=self.weight.device, dtype=self.weight.dtype) / 2
        with torch.no_grad():
            self.weight.copy_(torch.cat((half, half), dim=1))


class AttractorModel(Decoder):
    """The decoder of the attractor language model, see the equations at the top of this file."""

    config_class = AttractorConfig
    config: AttractorConfig

    def __init__(self, config: AttractorConfig, *, initialize: bool = True) -> None:
        self.num_backbone_layers = config.num_hidden_layers - config.num_attractor_layers
        gate = (config.gate_start, config.gate_limit)
        layers = [
            config.build_layer(gate if i >= self.num_backbone_layers else None) for i in range(config.num_hidden_layers)
        ]
        super().__init__(config, layers)
        if config.injection == "concat" and config.num_attractor_layers:
            self.injection = Concatenation(config.hidden_size)
        if initialize:
            self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Concatenation):
            module.reset_parameters()
            return
        super()._init_weights(module)
        if (
            isinstance(module, ZeroInitLinear)
            and not self.config.zero_init_attractor
            and module in self.layers[self.num_backbone_layers :].modules()
        ):
            std = math.sqrt(2 / (5 * self.config.hidden_size))
            nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)

    def refine(self, x: Tensor, context: TokenContext, stop: StopRule | None) -> tuple[Tensor, Tensor, Solution | None]:
        config = self.config
        if context.cache is not None and self.caches_equilibrium(stop) and (torch.is_grad_enabled() or self.training):
            raise ConfigError(
                "an equilibrium is kept in a cache only in evaluation mode and without gradients: use eval() and "
                "torch.no_grad(), or no cache."
            )
        proposal = self.run(x, context, 0, self.num_backbone_layers, context.states)
        if config.num_attractor_layers == 0:
            if stop not in (None, Steps(1)):
                raise ConfigError("a plain Transformer solves nothing; leave out depth, tolerance and max_evaluations.")
            return proposal, proposal, None
        if self.training and proposal.is_cpu and not is_synchronized() and not proposal.isfinite().all():
            return proposal, proposal, None  # the training loop skips a step whose loss is not finite
        stop = stop or self.default_stop_rule(is_padded=context.is_real is not None)
        solution = self.solve(proposal, context, stop)
        return proposal, solution.value, solution

    def solve(self, proposal: Tensor, context: TokenContext, stop: StopRule) -> Solution:
        """Refine ``proposal`` (B, T, D). In evaluation without gradients, converged tokens are not computed again."""
        config = self.config
        if stop == Steps(1) and config.start == "proposal":
            return self._single_evaluation(proposal, context)
        is_sparse = not stop.is_fixed_depth and not torch.is_grad_enabled() and not self.training
        update = SparseUpdate(self._evaluate, proposal, context) if is_sparse else self.update(proposal, context)
        solver = Anderson(window=config.window, mixing=config.mixing)
        solution = fixed_point(
            update,
            STARTS[config.start](proposal),
            solver=solver,
            stop=stop,
            # A fixed number of evaluations is a plain deep network, and is differentiated as one.
            gradient=self._gradient(solver, stop) if isinstance(stop, Tolerance) else Unrolled(),
            causal=True,
        )
        if isinstance(update, SparseUpdate):
            update.finish(solution.value)
        return solution

    def _gradient(self, solver: Anderson, stop: Tolerance) -> Gradient:
        gradient = GRADIENTS[self.config.gradient]
        if isinstance(gradient, Implicit):  # an equation of the adjoint is a row, so that no share of tokens ends it
            return replace(gradient, solver=solver, stop=replace(stop, min_converged_fraction=1.0))
        return replace(gradient, clip=self.config.adjoint_clip) if isinstance(gradient, Neumann) else gradient

    def _single_evaluation(self, proposal: Tensor, context: TokenContext) -> Solution:
        """Return the result of ``Steps(1)`` without a solver: this is the plain Transformer, and costs no more."""
        value = self._evaluate(proposal, proposal, context)
        residual = (value - proposal).detach().float().norm(dim=-1) / proposal.detach().float().norm(dim=-1)
        status = torch.full(residual.shape, Status.ACTIVE, dtype=torch.int8, device=residual.device)
        return Solution(
            value=value,
            residual=residual,
            evaluations=torch.ones_like(status, dtype=torch.int64),
            outcome=Outcome(status=status, residual=residual, calls=1, limit=1, checked=False),
        )

    def update(self, proposal: Tensor, context: TokenContext) -> Callable[[Tensor], Tensor]:
        """Return the map ``y → update(y)``, both (B, T, D), whose fixed point the model decodes."""
        return lambda y: self._evaluate(y, proposal, context)

    def _evaluate(self, y: Tensor, proposal: Tensor, context: AttentionContext) -> Tensor:
        first, last = self.num_backbone_layers, self.config.num_hidden_layers
        if self.config.injection == "mean":
            h = (y + proposal) / 2
            out = proposal + (self.run(h, context, first, last) - h)
        elif self.config.injection == "sum":
            out = self.run(y + proposal, context, first, last) - y
        else:
            h = self.injection(torch.cat((y, proposal), dim=-1)) if self.config.injection == "concat" else y
            out = self.run(h, context, first, last)
        # Padding converges at once, so that no real token waits for it.
        return out if context.is_real is None else torch.where(context.is_real, out, y)

    def num_cache_layers(self, stop: StopRule | None) -> int:
        evaluations = stop.max_evaluations if stop and stop.is_fixed_depth and self.config.num_attractor_layers else 1
        return self.num_backbone_layers + evaluations * self.config.num_attractor_layers

    def caches_equilibrium(self, stop: StopRule | None) -> bool:
        return self.config.num_attractor_layers > 0 and not (stop and stop.is_fixed_depth)

    def default_stop_rule(self, *, is_padded: bool = False) -> Tolerance:
        config = self.config
        is_partial = self.training and not is_padded  # padding converges at once, and would count
        return Tolerance(
            rtol=self.default_tolerance,
            max_evaluations=config.max_evaluations,
            min_evaluations=min(config.min_evaluations, config.max_evaluations),
            check_every=config.check_every if self.training else 1,
            min_converged_fraction=config.training_min_converged_fraction if is_partial else 1.0,
        )


class AttractorForCausalLM(LanguageModel):
    """The attractor language model, see the equations at the top of this file."""

    config_class = AttractorConfig
    config: AttractorConfig
    model_class = AttractorModel

    def update_of(self, output: LanguageModelOutput, position_ids: Tensor) -> Update:
        """Return the map that was solved for ``output``, of a batch without padding with ``position_ids`` (B, T)."""
        assert output.proposal is not None
        return self.model.update(output.proposal, self.model.make_context(output.proposal, position_ids=position_ids))

    @property
    def recurrent_layers(self) -> range:
        return range(self.model.num_backbone_layers, self.config.num_hidden_layers)

    def layer_uses(self, evaluations: float, *, training: bool) -> list[tuple[int, float]]:
        config = self.config
        num = self.model.num_backbone_layers
        backbone = (1, self.single_passes(num) if training else num)
        gradient = GRADIENTS[config.gradient]
        if not training or not config.num_attractor_layers:
            uses = evaluations
        elif isinstance(gradient, Unrolled):
            uses = 3 * evaluations - 2  # the last evaluation only checks the residual
        elif isinstance(gradient, Phantom):
            uses = evaluations + 3 * gradient.steps
        elif isinstance(gradient, Implicit):
            uses = float("nan")  # the adjoint solve decides
        else:  # one evaluation with gradients, and a vector-Jacobian product per term: for attention, half of its cost
            uses = evaluations + 3 + (gradient.terms if isinstance(gradient, Neumann) else 0)
        return [backbone, (config.num_attractor_layers, uses)]

    def flops_per_token(self, length: int, evaluations: float = 1.0, *, training: bool = False) -> float:
        flops = super().flops_per_token(length, evaluations, training=training)
        if hasattr(self.model, "injection"):
            (_, uses) = self.layer_uses(evaluations, training=training)[-1]
            flops += 2 * uses * self.model.injection.weight.numel()
        return flops

    def diagnostics(self, input_ids: Tensor) -> dict[str, float]:
        """Return the mean gate, and the spectral radius of the update at the equilibrium of ``input_ids`` (B, T)."""
        if not self.config.num_attractor_layers:
            return {}
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # shapes differ from training
            output = self(input_ids, tolerance=None if self.training else self.model.default_tolerance)
            context = self.model.make_context(output.hidden)
        if output.solution is None:
            return {}
        # Logging must not change the run's own generator.
        generator = torch.Generator(output.hidden.device).manual_seed(0)
        update = self.model.update(output.proposal, context)
        radius = spectral_radius(update, output.solution.value, iterations=8, generator=generator)
        return {"gate": self._mean_gate(torch.ones_like(output.hidden[0, 0])), "spectral_radius": float(radius.mean())}

    def _mean_gate(self, ones: Tensor) -> float:
        """Return the mean factor of all gates, through ``forward``, unless FSDP shards their weights between passes."""
        gates = [module for module in self.modules() if isinstance(module, LayerScale)]
        values = [gate.value() if isinstance(gate.raw, DTensor) else gate(ones) for gate in gates]
        return float(torch.stack([value.mean() for value in values]).mean().detach())
