"""The attractor language model: a backbone proposes output embeddings, a few weight-tied layers refine them to rest.

With ``F`` the attractor layers, ``c`` the proposal and ``h = (y + c)/2``::

    update(y) = c + (F(h) − h)      injection="mean"
    update(y) = F(y + c) − y        injection="sum"   (what the official code computes)

With ``mean``, one evaluation from the proposal is exactly the plain Transformer with all layers, and none is the Transformer
without the last ones. ``num_attractor_layers=0`` is that plain Transformer. With every layer an attractor layer and
``start="zero"`` the model is a deep equilibrium model: hidden states from nothing, no proposal.

Source: "Solve the Loop", arXiv:2605.12466; the ``mean`` injection is ours.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attractor.config import require_whole, suggestion
from attractor.errors import ConfigError
from attractor.fixed_point import fixed_point
from attractor.gradient import Gradient, Implicit, Neumann, OneStep, Phantom, Unrolled, spectral_radius
from attractor.models.language.base import LanguageModel, LanguageModelConfig, LanguageModelOutput
from attractor.models.language.inference.context import AttentionContext, Reader, require_plain
from attractor.models.language.inference.sparse_update import TokenUpdate
from attractor.models.language.inference.speculative import speculate
from attractor.nn.transformer import LayerScale
from attractor.solve import Anderson, Outcome, Solution, Status, Steps, StopRule, Tolerance, Update, is_synchronized

GRADIENTS: dict[str, Gradient] = {
    "one-step": OneStep(),
    "neumann": Neumann(1),
    "phantom": Phantom(steps=4),
    "implicit": Implicit(),
    "unrolled": Unrolled(),
}


class AttractorConfig(LanguageModelConfig):
    """Adds to the decoder's sizes how it is solved.

    Attributes
    ----------
    num_attractor_layers
        How many of ``num_hidden_layers``, the last, are the attractor; 0 is a plain Transformer.
    injection
        ``"mean"`` or ``"sum"``, see the module's text.
    start
        ``"proposal"``, or ``"zero"`` for a deep equilibrium model.
    gate_start, gate_limit
        LayerScale on the attractor's branches: factors start at the one (at most 0.98 of the other) and stay below the other.
    window
        Of Anderson's method.
    gradient
        ``one-step``, ``neumann``, ``phantom``, ``implicit`` or ``unrolled``.
    training_fraction
        In training without padding, a solve ends when this share of tokens is below tolerance or has given up.
    check_every
        In training, the host looks every so many evaluations whether a solve has ended. It waits for a GPU then: looking rarely
        costs evaluations and saves waits, and never looking before ``max_evaluations`` saves them all.
    """

    model_type = "attractor"

    num_attractor_layers: int = 1
    injection: str = "mean"
    start: str = "proposal"
    gate_start: float = 0.7
    gate_limit: float = 1.0
    window: int = 5
    gradient: str = "one-step"
    training_min_converged_fraction: float = 0.95
    check_every: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        require_whole(self, 0, "num_attractor_layers")
        if self.num_attractor_layers > self.num_hidden_layers:
            raise ConfigError(
                f"num_attractor_layers={self.num_attractor_layers} exceeds num_hidden_layers={self.num_hidden_layers}."
            )
        for name, valid in {
            "injection": ("mean", "sum"),
            "start": ("proposal", "zero"),
            "gradient": tuple(GRADIENTS),
        }.items():
            if getattr(self, name) not in valid:
                raise ConfigError(f"{name}={getattr(self, name)!r}: {suggestion(str(getattr(self, name)), valid)}")
        require_whole(self, 1, "window", "check_every")
        if not 0 < self.training_min_converged_fraction <= 1:
            raise ConfigError(
                f"training_fraction={self.training_min_converged_fraction}: the share must lie in (0, 1]."
            )
        if not 0 < self.gate_start <= self.gate_limit:
            raise ConfigError(f"gate_start={self.gate_start} must lie in (0, gate_limit={self.gate_limit}].")
        super().__post_init__(**kwargs)


class AttractorForCausalLM(LanguageModel):
    """See the module's text."""

    config_class = AttractorConfig
    config: AttractorConfig

    def __init__(self, config: AttractorConfig) -> None:
        self.num_backbone_layers = config.num_hidden_layers - config.num_attractor_layers
        gate = (config.gate_start, config.gate_limit)
        layers = [
            config.build_layer(gate if i >= self.num_backbone_layers else None) for i in range(config.num_hidden_layers)
        ]
        super().__init__(config, layers)
        self.post_init()

    def generate(
        self, *args: Any, num_draft: int | None = None, draft_depth: int = 1, streamer: Any = None, **kwargs: Any
    ) -> Any:
        """See :meth:`LanguageModel.generate`.

        Parameters
        ----------
        num_draft, draft_depth
            Draft so many tokens at depth 0 or 1 and let one solve verify them all; the text, or its distribution, stays the
            same. It pays where a solve takes many evaluations.
        """
        if num_draft is not None:
            if kwargs.get("custom_generate") is not None:
                raise ConfigError("num_draft is a way to generate, and so is custom_generate; give one of them.")
            kwargs["custom_generate"] = partial(
                speculate, num_draft=num_draft, draft_depth=draft_depth, streamer=streamer
            )
        return super().generate(*args, streamer=streamer, **kwargs)

    def refine(
        self, x: Tensor, context: AttentionContext, stop: StopRule | None
    ) -> tuple[Tensor, Tensor, Solution | None]:
        config = self.config
        if context.cache is not None and config.num_attractor_layers and not (stop and stop.is_fixed_depth):
            if torch.is_grad_enabled() or self.training:
                raise ConfigError(
                    "an equilibrium is kept in a cache in evaluation and without gradients only: eval(), torch.no_grad()."
                )
            require_plain(context.cache)
        proposal = self.model.run(x, context, 0, self.num_backbone_layers)
        if config.num_attractor_layers == 0:
            if stop not in (None, Steps(1)):
                raise ConfigError("a plain Transformer solves nothing; leave out depth, tolerance and max_evaluations.")
            return proposal, proposal, None
        if self.training and proposal.is_cpu and not is_synchronized() and not proposal.isfinite().all():
            return proposal, proposal, None  # a loss that is not finite is for the training loop to skip
        solution = self.solve(proposal, context, stop or self._trained_stop(context.is_real is not None))
        return proposal, solution.value, solution

    def solve(self, proposal: Tensor, context: AttentionContext, stop: StopRule) -> Solution:
        """Refine ``proposal`` (B, T, D). Without gradients, tokens that rest are not computed again."""
        config = self.config
        if stop == Steps(1) and config.start == "proposal":
            return self._evaluated_once(proposal, context)
        partly = not stop.is_fixed_depth and not torch.is_grad_enabled() and not self.training
        update = TokenUpdate(self._once, proposal, context) if partly else self.update(proposal, context)
        solution = fixed_point(
            update,
            proposal if config.start == "proposal" else torch.zeros_like(proposal),
            solver=Anderson(window=config.window),
            stop=stop,
            # A fixed number of evaluations is a plain deep network, and differentiated as one.
            gradient=Unrolled() if stop.is_fixed_depth else GRADIENTS[config.gradient],
            causal=True,
        )
        if isinstance(update, TokenUpdate):
            update.finish(solution.value)
        return solution

    def _evaluated_once(self, proposal: Tensor, context: AttentionContext) -> Solution:
        """One evaluation of any solver that begins with the plain step, without a solver: the plain Transformer costs no more."""
        value = self._once(proposal, proposal, context)
        residual = (value - proposal).detach().float().norm(dim=-1) / proposal.detach().float().norm(dim=-1)
        status = torch.full(residual.shape, Status.ACTIVE, dtype=torch.int8, device=residual.device)
        return Solution(
            value=value,
            residual=residual,
            evaluations=torch.ones_like(status, dtype=torch.int64),
            outcome=Outcome(status=status, calls=1, limit=1, checked=False),
        )

    def update(self, proposal: Tensor, context: AttentionContext) -> Callable[[Tensor], Tensor]:
        """Return the map ``y → update(y)``, both (B, T, D), whose fixed point the model decodes.

        With a cache, every call keeps its keys and values in slots of its own.
        """
        calls = itertools.count()
        return lambda y: self._once(y, proposal, context.shift_slots(next(calls) * self.config.num_attractor_layers))

    def _once(self, y: Tensor, proposal: Tensor, reader: Reader) -> Tensor:
        first, last = self.num_backbone_layers, self.config.num_hidden_layers
        if self.config.injection == "mean":
            h = (y + proposal) / 2
            out = proposal + (self.model.run(h, reader, first, last) - h)
        else:
            out = self.model.run(y + proposal, reader, first, last) - y
        # Padding rests at once, so that no real token ever waits for it.
        return out if reader.is_real is None else torch.where(reader.is_real, out, y)

    def num_cache_layers(self, stop: StopRule | None) -> int:
        evaluations = stop.max_evaluations if stop and stop.is_fixed_depth and self.config.num_attractor_layers else 1
        return self.num_backbone_layers + evaluations * self.config.num_attractor_layers

    @property
    def recurrent_layers(self) -> range:
        return range(self.num_backbone_layers, self.config.num_hidden_layers)

    def layer_uses(self, evaluations: float, *, training: bool) -> list[tuple[int, float]]:
        config = self.config
        backbone = (self.num_backbone_layers, 3.0 if training else 1.0)
        gradient = GRADIENTS[config.gradient]
        if not training or not config.num_attractor_layers:
            uses = evaluations
        elif isinstance(gradient, Unrolled):
            uses = 3 * evaluations - 2  # the last is looked at and not used
        elif isinstance(gradient, Phantom):
            uses = evaluations + 3 * gradient.steps
        elif isinstance(gradient, Implicit):
            uses = float("nan")  # the adjoint solve decides
        else:  # one tracked call, and a product with its Jacobian a term, for attention half of its cost
            uses = evaluations + 3 + (gradient.terms if isinstance(gradient, Neumann) else 0)
        return [backbone, (config.num_attractor_layers, uses)]

    def diagnostics(self, input_ids: Tensor) -> dict[str, float]:
        """Return the mean gate, and the spectral radius of the update at the equilibrium of ``input_ids`` (B, T)."""
        if not self.config.num_attractor_layers:
            return {}
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # another shape than training's
            output = self(input_ids)
            context = self._context(output.hidden, None, None)
        if output.solution is None:
            return {}
        generator = torch.Generator(output.hidden.device).manual_seed(0)  # the run's own must not depend on its log
        update = self.update(output.proposal, context)
        radius = spectral_radius(update, output.solution.value, iterations=8, generator=generator)
        gates = torch.stack([gate.value().mean() for gate in self.modules() if isinstance(gate, LayerScale)])
        return {"gate": float(gates.mean().detach()), "spectral_radius": float(radius.mean())}

    def _trained_stop(self, is_padded: bool) -> Tolerance:
        config = self.config
        partly = self.training and not is_padded  # padding rests at once, and would count
        return Tolerance(
            rtol=config.tolerance,
            max_evaluations=config.max_evaluations,
            min_evaluations=min(config.min_evaluations, config.max_evaluations),
            check_every=config.check_every if self.training else 1,
            min_converged_fraction=config.training_min_converged_fraction if partly else 1.0,
        )

    @classmethod
    def from_backbone(cls, path_or_id: str | Path, **settings: Any) -> "AttractorForCausalLM":
        """Return the attractor model of a pretrained Qwen3 or Llama; see ``retrofit.py``."""
        from attractor.interop.backbone import from_backbone

        return from_backbone(path_or_id, **settings)

    def update_of(self, output: LanguageModelOutput, position_ids: Tensor) -> Update:
        """Return the map that was solved for ``output``, of a batch without padding with ``position_ids`` (B, T)."""
        assert output.proposal is not None
        return self.update(output.proposal, self._context(output.proposal, None, position_ids))
