"""The tiny recursive model (Less is More, arXiv:2510.04871), as in its authors' code."""

from dataclasses import field

from torch import Tensor

from attractor.config import config_class
from attractor.models.reasoning.reasoner import Draw
from attractor.models.reasoning.two_part import TwoPartConfig, TwoPartReasoner, with_latent_noise
from attractor.nn import GridNetworkConfig, TRMUpdateConfig


@config_class
class TRMConfig(TwoPartConfig):
    """``evaluations_per_segment`` is TRM's ``H_cycles``, and ``update.num_latent`` its ``L_cycles``."""

    update: TRMUpdateConfig = field(default_factory=lambda: TRMUpdateConfig(network=GridNetworkConfig(), num_latent=6))
    evaluations_per_segment: int = 3

    @property
    def width(self) -> int:
        return self.update.width

    def build(self) -> "TRM":
        return TRM(self)


class TRM(TwoPartReasoner):
    """The tiny recursive model. The state is ``[y, z]``.

    One evaluation makes ``L_cycles`` latent steps, ``z ← net(z + y + x)``, then one answer step, ``y ← net(y + z)``,
    with the same small network. Of the ``H_cycles`` evaluations of a segment only the last carries gradients.
    """

    config: TRMConfig

    def add_networks(self) -> None:
        self.update = self.config.update.build()

    def evaluate_cells(self, state: Tensor, x: Tensor, draw: Draw) -> Tensor:
        new: Tensor = self.update(with_latent_noise(state, draw), x)
        return new
