"""The looped Transformer baseline: a few layers applied repeatedly to a state, with the input injected every time.

After Parcae: ``state ← core(decay ⊙ state + gain ⊙ e)`` from zero. ``e`` is the output of the first layers (the
prelude). ``decay = exp(−exp(raw))`` lies in (0, 1), so that the linear part of the loop has a spectral radius below 1.
Training samples the number of iterations and backpropagates through the last few only. The last layers (the coda) read
the final state.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attractor.config import require_whole
from attractor.errors import ConfigError
from attractor.gradient import Phantom, Unrolled
from attractor.layer import fixed_point
from attractor.models.language.base import LanguageModel
from attractor.models.language.config import LanguageModelConfig
from attractor.models.language.decoder import Decoder
from attractor.models.language.inference.context import TokenContext
from attractor.solve import Picard, Solution, Steps, StopRule


class LoopedConfig(LanguageModelConfig):
    """Adds the loop; ``num_hidden_layers`` counts prelude, core and coda.

    Attributes
    ----------
    num_core_layers, num_coda_layers
        Layers in the loop, and after it; the others are the prelude.
    mean_recurrence
        Mean number of iterations in training (1 + a Poisson variable), and the number of iterations at inference.
    tracked_recurrence
        How many iterations, the last, carry gradients.
    """

    model_type = "attractor-looped"

    num_core_layers: int = 2
    num_coda_layers: int = 1
    mean_recurrence: int = 8
    tracked_recurrence: int = 4

    def __post_init__(self, **kwargs: Any) -> None:
        require_whole(self, 1, "num_core_layers", "mean_recurrence", "tracked_recurrence")
        require_whole(self, 0, "num_coda_layers")
        if self.num_core_layers + self.num_coda_layers > self.num_hidden_layers:
            raise ConfigError(
                f"num_core_layers={self.num_core_layers} and num_coda_layers={self.num_coda_layers} "
                f"exceed num_hidden_layers={self.num_hidden_layers}."
            )
        super().__post_init__(**kwargs)


class Injection(nn.Module):
    """``decay ⊙ state + gain ⊙ e``, per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.empty(width))
        self.gain = nn.Parameter(torch.empty(width))

    def decay(self) -> Tensor:
        """Return the factors on the state (D,), in (0, 1)."""
        return torch.exp(-torch.exp(self.raw))

    def forward(self, state: Tensor, e: Tensor) -> Tensor:
        return self.decay() * state + self.gain * e


class LoopedModel(Decoder):
    """The decoder of the looped language model, see the equation at the top of this file."""

    config_class = LoopedConfig
    config: LoopedConfig

    def __init__(self, config: LoopedConfig, *, initialize: bool = True) -> None:
        super().__init__(config, [config.build_layer() for _ in range(config.num_hidden_layers)])
        self.injection = Injection(config.hidden_size)
        if initialize:
            self.post_init()

    def refine(self, x: Tensor, context: TokenContext, stop: StopRule | None) -> tuple[Tensor, Tensor, Solution | None]:
        config = self.config
        if context.cache is not None and (self.training or (stop and not stop.is_fixed_depth)):
            raise ConfigError(
                "a looped model keeps a cache only in evaluation mode and for a fixed number of iterations: give depth, or no "
                "budget."
            )
        coda = config.num_hidden_layers - config.num_coda_layers
        core = coda - config.num_core_layers
        e = self.run(x, context, 0, core, context.states)
        tracked = 0
        if stop is None:
            num = self.default_stop_rule().n
            if self.training:
                num = 1 + int(torch.poisson(torch.tensor(num - 1.0)))
            tracked = min(config.tracked_recurrence, num) if torch.is_grad_enabled() else 0
            stop = Steps(num - tracked)

        def update(state: Tensor) -> Tensor:
            out = self.run(self.injection(state, e), context, core, coda)
            return out if context.is_real is None else torch.where(context.is_real, out, state)

        solution = fixed_point(
            update,
            torch.zeros_like(e),
            solver=Picard(),
            stop=stop,
            gradient=Phantom(steps=tracked) if tracked else Unrolled(),
            causal=True,
        )
        solution = replace(  # the iterations that carry gradients count too
            solution,
            evaluations=solution.evaluations + tracked,
            outcome=replace(solution.outcome, calls=solution.outcome.calls + tracked),
        )
        return e, self.run(solution.value, context, coda, config.num_hidden_layers), solution

    def default_stop_rule(self, *, is_padded: bool = False) -> Steps:
        return Steps(self.config.mean_recurrence)

    def num_cache_layers(self, stop: StopRule | None) -> int:
        iterations = stop.max_evaluations if stop and stop.is_fixed_depth else self.config.mean_recurrence
        return self.config.num_hidden_layers + (iterations - 1) * self.config.num_core_layers

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Injection):
            nn.init.constant_(module.raw, -0.3665)  # a decay of 0.5
            nn.init.constant_(module.gain, 1.0)


class LoopedForCausalLM(LanguageModel):
    """The looped language model, see the equation at the top of this file."""

    config_class = LoopedConfig
    config: LoopedConfig
    model_class = LoopedModel

    @property
    def recurrent_layers(self) -> range:
        coda = self.config.num_hidden_layers - self.config.num_coda_layers
        return range(coda - self.config.num_core_layers, coda)

    def layer_uses(self, evaluations: float, *, training: bool) -> list[tuple[int, float]]:
        config = self.config
        tracked = min(config.tracked_recurrence, evaluations) if training else 0
        once = 3.0 if training else 1.0
        return [
            (config.num_hidden_layers - config.num_core_layers, once),
            (config.num_core_layers, evaluations + 2 * tracked),
        ]
