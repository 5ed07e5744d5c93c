"""The attractor reasoner: an update network iterated to its fixed point, and a decoder of that point.

The update ``f`` is weight-tied and receives the embedded question ``x`` at every evaluation. A solve iterates
``y ← (1 − λ) y + λ (f(y, x) + ε)`` from a random state, with damping λ and, in training, a little noise ε. Random
initial states and noise enlarge the basins of attraction of correct answers (EqR, arXiv:2605.21488). Training
supervises every segment of a few evaluations and carries the state over, detached; the correct answer becomes a
fixed point. Inference iterates until the state converges (Attractor Models, arXiv:2605.12466).
"""

from collections.abc import Callable
from dataclasses import field

import torch
from torch import Tensor, nn

from attractor.config import config_class, require_whole, suggestion
from attractor.errors import ConfigError
from attractor.gradient import Gradient, Implicit, OneStep, Phantom
from attractor.models.reasoning.reasoner import Reasoner, ReasonerConfig, normal_noise
from attractor.nn import (
    CandidateEmbedding,
    CandidateHead,
    GatedConvolutionUpdateConfig,
    SymmetricUpdateConfig,
    TRMUpdateConfig,
)
from attractor.solve import Anderson, Picard, Solver, Tolerance


@config_class
class AttractorReasonerConfig(ReasonerConfig):
    """Settings of :class:`AttractorReasoner`.

    Attributes
    ----------
    obstacles
        Symbols whose cells keep a state of zero, such as the walls of a maze. Information passes them only within
        the receptive field of one evaluation.
    update
        The update network. The state of a TRM update is ``[y, z]``; the answer is decoded from ``y``. A symmetric update,
        for Sudokus, has a vector for each digit of a cell.
    halting
        Whether a head predicts, from the mean of all cells, that the answer is right.
    num_auxiliary_classes
        Classes of a head that predicts the puzzle's auxiliary targets in training; 0 for no head.
    damping
        The step λ of an evaluation, in (0, 1].
    noise
        The standard deviation of the noise ε that training adds at each evaluation.
    solver
        ``"picard"``, the damped iteration, or ``"anderson"``, which mixes the last five steps.
    gradient, backprop_steps
        ``"phantom"`` through the last ``backprop_steps`` evaluations, ``"one-step"``, or ``"implicit"``, which is
        exact at a fixed point.
    random_init
        Start from a standard normal state; otherwise from zero.
    segment_tolerance
        In training, too, a puzzle's segment ends when its relative residual is below this; 0 for never.
    """

    num_symbols: int = 4
    num_classes: int = 5
    obstacles: tuple[int, ...] = ()
    update: GatedConvolutionUpdateConfig | TRMUpdateConfig | SymmetricUpdateConfig = field(
        default_factory=GatedConvolutionUpdateConfig
    )
    halting: bool = False
    num_auxiliary_classes: int = 0
    damping: float = 0.95
    solver: str = "picard"
    gradient: str = "phantom"
    noise: float = 0.01
    random_init: bool = True
    segment_tolerance: float = 0.0
    evaluations_per_segment: int = 8
    backprop_steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole(self, 0, "num_auxiliary_classes")
        if not 0 < self.damping <= 1:
            raise ConfigError(f"damping={self.damping}: must lie in (0, 1].")
        for name, known in (("solver", SOLVERS), ("gradient", GRADIENTS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r}: {suggestion(getattr(self, name), known)}")
        for name in ("noise", "segment_tolerance"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: cannot be negative.")
        if isinstance(self.update, SymmetricUpdateConfig):
            num = self.update.num_digits + 1
            if (self.num_symbols, self.num_classes) != (num, num):
                raise ConfigError(
                    f"num_symbols={self.num_symbols}, num_classes={self.num_classes}: a symmetric update with boxes of "
                    f"{self.update.box_height} × {self.update.box_width} cells needs {num}, a blank and the digits."
                )

    @property
    def cost_depends_on_clues(self) -> bool:
        return isinstance(self.update, SymmetricUpdateConfig)

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
    """The state is that of the update network, (B, height, W, state width)."""

    config: AttractorReasonerConfig

    def __init__(self, config: AttractorReasonerConfig) -> None:
        super().__init__(config, solver=SOLVERS[config.solver](config), gradient=GRADIENTS[config.gradient](config))
        self.random_init, self.segment_tolerance = config.random_init, config.segment_tolerance
        width = self.answer_width = config.update.width
        self.embedding = nn.Embedding(config.num_symbols, width)
        self.update = config.update.build()
        self.head = nn.Linear(width, config.num_classes)
        if isinstance(config.update, SymmetricUpdateConfig):
            self.embedding, self.head = CandidateEmbedding(config.update), CandidateHead(width)
            self.answer_width = config.update.state_width
        if config.halting:
            self.halt = nn.Linear(width, 1)
            nn.init.zeros_(self.halt.weight)
            nn.init.constant_(self.halt.bias, -5.0)  # a new model halts nothing
        if config.num_auxiliary_classes:
            self.auxiliary = nn.Linear(config.update.state_width, config.num_auxiliary_classes)

    def init_state(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        shape, dtype = (*questions.shape, self.config.update.state_width), self.head.weight.dtype
        if not self.config.random_init:  # made from the questions, because FSDP may shard the weights
            return questions.new_zeros(shape, dtype=dtype)
        device = questions.device if generator is None else generator.device
        state = torch.randn(shape, generator=generator, dtype=dtype, device=device).to(questions.device)
        return state * self._mask(questions)

    def make_update(self, questions: Tensor, noise: float | None = None) -> Callable[[Tensor], Tensor]:
        x, mask = self.embedding(questions), self._mask(questions)
        own = self.config.noise if self.training else 0.0
        draw = normal_noise(own if noise is None else noise, questions)

        def update(y: Tensor) -> Tensor:
            f = self.update(y, x).to(y.dtype)
            drawn = draw(f.shape, f.dtype)
            return (f if drawn is None else f + drawn) * mask

        return update

    def decode(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        answer = state[..., : self.answer_width]
        halt = None
        if self.config.halting:
            halt = self.halt(answer.reshape(len(answer), -1, self.halt.in_features).mean(dim=1))[:, 0]
        return self.head(answer), halt

    def _mask(self, questions: Tensor) -> Tensor | float:
        """Return 0 at obstacles and 1 elsewhere, (B, height, W, 1)."""
        if not self.config.obstacles:
            return 1.0
        is_obstacle = torch.isin(questions, torch.tensor(self.config.obstacles, device=questions.device))
        return (~is_obstacle)[..., None].to(self.head.weight.dtype)
