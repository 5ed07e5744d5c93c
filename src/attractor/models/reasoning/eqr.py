"""The equilibrium reasoner (EqR, arXiv:2605.21488), as in its authors' code: TRM with damping, noise and random starts."""

from dataclasses import field

import torch
from torch import Tensor

from attractor.config import config_class, require_positive
from attractor.errors import ConfigError
from attractor.models.reasoning.reasoner import Draw
from attractor.models.reasoning.two_part import TwoPartConfig, TwoPartReasoner
from attractor.nn import GridNetworkConfig, TRMUpdateConfig
from attractor.nn.grid import truncated_normal_


@config_class
class EqRConfig(TwoPartConfig):
    """``evaluations_per_segment`` is EqR's ``H_cycles``, and ``update.num_latent`` its ``L_cycles``.

    Attributes
    ----------
    damping
        The step λ of every call of the network, in (0, 1].
    noise
        The standard deviation of the noise that every call adds, also at test time.
    init_std
        Standard deviations of the initial ``y`` and ``z``: truncated normal numbers, drawn per cell and channel.
    """

    update: TRMUpdateConfig = field(default_factory=lambda: TRMUpdateConfig(network=GridNetworkConfig(), num_latent=6))
    evaluations_per_segment: int = 3
    damping: float = 0.95
    noise: float = 0.01
    init_std: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "damping")
        if self.damping > 1 or self.noise < 0 or min(self.init_std) <= 0:
            raise ConfigError(
                f"EqRConfig(damping={self.damping}, noise={self.noise}, init_std={self.init_std}): give a damping of at "
                "most 1, no negative noise and positive deviations."
            )

    @property
    def width(self) -> int:
        return self.update.width

    def build(self) -> "EqR":
        return EqR(self)


class EqR(TwoPartReasoner):
    """TRM in which every call of the network is ``h ← (1 − λ) h + λ net(h + injection) + σ ε`` with normal ``ε``."""

    config: EqRConfig
    random_init = True

    def add_networks(self) -> None:
        self.update, self.noise = self.config.update.build(), self.config.noise

    def init_state(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        device = questions.device if generator is None else generator.device
        shape, dtype = self.state_shape(questions), self.lm_head.weight.dtype
        parts = [
            truncated_normal_(torch.empty(*shape, self.width, dtype=dtype, device=device), std, generator)
            for std in self.config.init_std
        ]
        return torch.cat(parts, dim=-1).to(questions.device)

    def evaluate_cells(self, state: Tensor, x: Tensor, draw: Draw) -> Tensor:
        noise = draw((self.update.num_latent + 1, *x.shape), state.dtype)
        new: Tensor = self.update(state, x, self.config.damping, noise)
        return new
