"""The attractor reasoner: a state on a grid that an update network moves until it rests, and a reading of it.

The update ``f`` is weight-tied and sees the embedded question ``x`` at every step. A solve iterates
``y ← (1 − λ) y + λ (f(y, x) + ε)``: damping λ, and in training a little noise ε, from a random start. Both widen
the basins of right answers (EqR, arXiv:2605.21488). Trained a few updates at a time, every such segment supervised and
the state carried over detached, the right answer becomes a fixed point; at inference the same iteration just goes
on until nothing changes (Attractor Models, arXiv:2605.12466).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attractor.config import suggestion
from attractor.errors import ConfigError
from attractor.gradient import Gradient, Implicit, OneStep, Phantom
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, Work
from attractor.nn import ConvolutionUpdateConfig, TRMUpdateConfig
from attractor.solve import Anderson, Picard, Solver, Tolerance


@dataclass(frozen=True, kw_only=True)
class AttractorReasonerConfig(ReasonerConfig):
    """What is built and how it is iterated.

    Attributes
    ----------
    obstacles
        Symbols whose cells keep a state of zero, such as the walls of a maze: only what a single update sees gets past them.
    update
        The update network. A recursion's state has two parts, of which the first is the answer that is read.
    halting
        Whether a head judges, from the mean of all cells, if the answer is right.
    damping
        λ above, in (0, 1].
    solver
        ``"picard"``, the damped iteration above, or ``"anderson"``, which mixes its last five steps.
    gradient
        ``"phantom"`` through the last ``tracked`` evaluations, ``"one-step"`` or ``"implicit"``, the exact one of an equilibrium.
    noise
        Standard deviation of ε while training.
    random_start
        Start from a standard normal state; otherwise from zero.
    """

    num_symbols: int = 4
    num_classes: int = 5
    obstacles: tuple[int, ...] = ()
    update: ConvolutionUpdateConfig | TRMUpdateConfig = field(default_factory=ConvolutionUpdateConfig)
    halting: bool = False
    damping: float = 0.95
    solver: str = "picard"
    gradient: str = "phantom"
    noise: float = 0.01
    random_start: bool = True
    evaluations_per_segment: int = 8
    backprop_steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.damping <= 1:
            raise ConfigError(f"damping={self.damping}: must lie in (0, 1].")
        for name, known in (("solver", SOLVERS), ("gradient", GRADIENTS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}: {suggestion(getattr(self, name), known)}")
        if self.noise < 0:
            raise ConfigError(f"noise={self.noise}: cannot be negative.")

    def build(self) -> "AttractorReasoner":
        return AttractorReasoner(self)


SOLVERS: dict[str, Callable[[AttractorReasonerConfig], Solver]] = {
    "picard": lambda config: Picard(damping=config.damping),
    "anderson": lambda config: Anderson(mixing=config.damping),
}
GRADIENTS: dict[str, Callable[[AttractorReasonerConfig], Gradient]] = {
    "phantom": lambda config: Phantom(steps=config.backprop_steps, damping=config.damping),
    "one-step": lambda config: OneStep(),
    "implicit": lambda config: Implicit(stop=Tolerance(rtol=1e-3, max_evaluations=32)),
}


class AttractorReasoner(Reasoner):
    """See the module's text."""

    def __init__(self, config: AttractorReasonerConfig) -> None:
        super().__init__(config, solver=SOLVERS[config.solver](config), gradient=GRADIENTS[config.gradient](config))
        self.config, self.random_start = config, config.random_start
        width = config.update.width
        self.embedding = nn.Embedding(config.num_symbols, width)
        self.update = config.update.build()
        self.head = nn.Linear(width, config.num_classes)
        if config.halting:
            self.halt = nn.Linear(width, 1)
            nn.init.zeros_(self.halt.weight)
            nn.init.constant_(self.halt.bias, -5.0)  # at first it takes nothing for solved

    def start(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shape, dtype = (*questions.shape, self.config.update.state_width), self.head.weight.dtype
        if (
            not self.config.random_start
        ):  # as the questions are, not as the weights: those may be divided among processes
            return questions.new_zeros(shape, dtype=dtype)
        # A generator is of the CPU: a seed then means the same on every device.
        device = questions.device if generator is None else generator.device
        state = torch.randn(shape, generator=generator, dtype=dtype, device=device).to(questions.device)
        return state * self._open(questions)

    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        x, is_open = self.embedding(questions), self._open(questions)
        noise = self.config.noise if self.training else 0.0

        def update(y: Tensor) -> Tensor:
            f = self.update(y, x).to(y.dtype)
            return (f + noise * torch.randn_like(f) if noise else f) * is_open

        return update

    def read(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        answer = state[..., : self.config.update.width]
        halt = self.halt(answer.flatten(1, -2).mean(dim=1))[:, 0] if self.config.halting else None
        return self.head(answer), halt

    def work(self, num_cells: int) -> Work:
        evaluation = self.update.flops(num_cells)
        reading = 2.0 * (num_cells * self.head.weight.numel() + self.config.halting * self.config.update.width)
        return Work(evaluation=evaluation, differentiated=evaluation, reading=reading)

    def _open(self, questions: Tensor) -> Tensor | float:
        """1 where a cell has a state, 0 at obstacles; (B, height, W, 1)."""
        if not self.config.obstacles:
            return 1.0
        closed = torch.isin(questions, torch.tensor(self.config.obstacles, device=questions.device))
        return (~closed)[..., None].to(self.head.weight.dtype)
