"""The puzzle network in the code of Attractor Models (arXiv:2605.12466): TRM whose latent is solved for its fixed point."""

from collections.abc import Callable
from dataclasses import field

import torch
from torch import Tensor

from attractor.config import config_class, require_positive, require_whole
from attractor.layer import fixed_point
from attractor.models.reasoning.reasoner import Draw
from attractor.models.reasoning.two_part import TwoPartConfig, TwoPartReasoner
from attractor.nn import GridNetwork, GridNetworkConfig
from attractor.solve import Anderson, Tolerance


@config_class
class TRMDEQConfig(TwoPartConfig):
    """Settings of TRM-DEQ; ``evaluations_per_segment`` is its ``H_cycles``.

    Attributes
    ----------
    tolerance, max_evaluations, min_evaluations, window
        The solve of the latent, by Anderson acceleration: ``deq_tol``, ``deq_max_iter``, ``deq_min_iter`` and
        ``deq_anderson_m``. Every puzzle stops by its own residual.
    num_latent
        Calls of the network after the solve, which carry the gradients (``bptt_through``).
    """

    network: GridNetworkConfig = field(
        default_factory=lambda: GridNetworkConfig(num_layers=8, mixing="attention", grid_positions=False)
    )
    evaluations_per_segment: int = 3
    tolerance: float = 1e-3
    max_evaluations: int = 8
    min_evaluations: int = 4
    window: int = 5
    num_latent: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "tolerance")
        require_whole(self, 1, "max_evaluations", "min_evaluations", "window", "num_latent")

    @property
    def width(self) -> int:
        return self.network.width

    def build(self) -> "TRMDEQ":
        return TRMDEQ(self)


class TRMDEQ(TwoPartReasoner):
    """TRM with a solved latent. The state is ``[y, z]``.

    One evaluation solves ``z* = net(z* + y + x)`` from the latent before, and then makes ``y ← net(y + z*)``. The
    authors' solver mixes entries of its history that were never filled; this one converges.
    """

    config: TRMDEQConfig
    noise_refusal = "it solves for its latent, and the fixed point does not depend on noise in the latent"

    def add_networks(self) -> None:
        self.net = GridNetwork(self.config.network)

    def evaluate_cells(self, state: Tensor, x: Tensor, draw: Draw) -> Tensor:
        grid, angles = x.shape[1:-1], self.net.angles(x.shape[1:-1], x)
        y, (step, z) = state.flatten(1, -2)[..., : self.width].contiguous(), self._latent_map(state, x)
        with torch.no_grad():
            z = self._solve(step, z)
        for _ in range(self.config.num_latent):
            z = step(z)
        return torch.cat([self.net(y, z, grid, angles), z], dim=-1).view(state.shape)

    def penalized_map(self, questions: Tensor, state: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        return self._latent_map(self._cells(state), self._embed(questions))  # the map that is solved

    def _latent_map(self, state: Tensor, x: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return ``z ↦ net(z + y + x)`` and ``z``, (B, N, D)."""
        grid, angles = x.shape[1:-1], self.net.angles(x.shape[1:-1], x)
        y, z = (part.contiguous() for part in state.flatten(1, -2).chunk(2, dim=-1))
        injection = y + x.flatten(1, -2)
        return lambda z: self.net(z, injection, grid, angles).to(z.dtype), z

    def _solve(self, step: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        config = self.config
        if z.is_meta:  # operations are counted there
            for _ in range(config.max_evaluations):
                z = step(z)
            return z
        stop = Tolerance(
            rtol=config.tolerance,
            max_evaluations=config.max_evaluations,
            min_evaluations=min(config.min_evaluations, config.max_evaluations),
            patience=None,
        )
        return fixed_point(step, z, solver=Anderson(window=config.window), stop=stop, equation_dims=2).value
