"""The attractor reasoner: a state on a grid that an update network moves until it rests, and a reading of it.

The update ``f`` is weight-tied and sees the embedded question ``x`` at every step. A solve iterates
``y ← (1 − λ) y + λ (f(y, x) + ε)``: damping λ, and in training a little noise ε, from a random start. Both widen
the basins of right answers (EqR, arXiv:2605.21488). Trained a few updates at a time, every such segment supervised and
the state carried over detached, the right answer becomes a fixed point; at inference the same iteration just goes
on until nothing changes (Attractor Models, arXiv:2605.12466).
"""

from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor, nn

from attractor.config import require_whole
from attractor.errors import ConfigError, DataError
from attractor.fixed_point import fixed_point
from attractor.gradient import Phantom
from attractor.nn import ConvolutionUpdateConfig
from attractor.solve import Picard, Solution, Steps, StopRule, Tolerance


@dataclass(frozen=True, kw_only=True)
class AttractorReasonerConfig:
    """What is built and how it is iterated.

    Attributes
    ----------
    num_symbols, num_classes
        Symbols of a question's cell and of an answer's.
    obstacles
        Symbols whose cells keep a state of zero, such as the walls of a maze: only what a single update sees gets past them.
    update
        The update network; anything with ``width`` and ``build()``.
    damping
        λ above, in (0, 1].
    noise
        Standard deviation of ε while training.
    random_start
        Start from a standard normal state; otherwise from zero.
    segment
        Evaluations of one supervised segment.
    tracked
        How many of them, the last, gradients flow through (phantom gradient).
    """

    num_symbols: int = 4
    num_classes: int = 5
    obstacles: tuple[int, ...] = ()
    update: ConvolutionUpdateConfig = field(default_factory=ConvolutionUpdateConfig)
    damping: float = 0.95
    noise: float = 0.01
    random_start: bool = True
    segment: int = 8
    tracked: int = 4

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_symbols", "num_classes", "segment", "tracked")
        if not 1 <= self.tracked <= self.segment:
            raise ConfigError(f"tracked={self.tracked}: must lie between 1 and segment={self.segment}.")
        if not 0 < self.damping <= 1:
            raise ConfigError(f"damping={self.damping}: must lie in (0, 1].")
        if self.noise < 0:
            raise ConfigError(f"noise={self.noise}: cannot be negative.")


@dataclass(frozen=True, kw_only=True)
class ReasonerOutput:
    """``logits`` (B, height, W, classes), and the solve that led to them; ``solution.value`` is the state."""

    logits: Tensor
    solution: Solution


class AttractorReasoner(nn.Module):
    """See the module's text. Questions are integer grids (B, height, W) of any size."""

    def __init__(self, config: AttractorReasonerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_symbols, config.update.width)
        self.update = config.update.build()
        self.head = nn.Linear(config.update.width, config.num_classes)

    def start(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the state that a trajectory starts from, (B, height, W, D)."""
        weight = self.head.weight
        shape = (*questions.shape, weight.shape[1])
        if not self.config.random_start:
            return weight.new_zeros(shape)
        state = torch.randn(shape, generator=generator, dtype=weight.dtype, device=weight.device)
        return state * self._open(questions)

    def forward(
        self, questions: Tensor, state: Tensor | None = None, *, stop: StopRule | None = None
    ) -> ReasonerOutput:
        """Refine ``state`` (default: a fresh start) and read the answer.

        Without ``stop``, one segment: with gradients on, its last ``tracked`` evaluations carry them.
        """
        config = self.config
        if questions.ndim != 3 or int(questions.max()) >= config.num_symbols:
            raise DataError(
                f"questions of shape {tuple(questions.shape)}: give integer grids (B, height, W) of symbols "
                f"0 to {config.num_symbols - 1}."
            )
        x = self.embedding(questions)
        is_open = self._open(questions)
        state = self.start(questions) if state is None else state
        noise = config.noise if self.training else 0.0

        def update(y: Tensor) -> Tensor:
            f = self.update(y, x)
            return (f + noise * torch.randn_like(f) if noise else f) * is_open

        tracked = config.tracked if torch.is_grad_enabled() else 0
        solution = fixed_point(
            update,
            state,
            solver=Picard(damping=config.damping),
            stop=Steps(config.segment - tracked) if stop is None else stop,
            gradient=Phantom(steps=config.tracked, damping=config.damping),
            equation_dims=3,
        )
        return ReasonerOutput(logits=self.head(solution.value), solution=solution)

    def _open(self, questions: Tensor) -> Tensor:
        """1 where a cell has a state, 0 at obstacles; (B, height, W, 1)."""
        closed = torch.isin(questions, torch.tensor(self.config.obstacles, device=questions.device))
        return (~closed)[..., None].to(self.head.weight.dtype)

    @torch.no_grad()
    def solve(
        self,
        questions: Tensor,
        *,
        depth: int = 1024,
        tolerance: float | None = 1e-4,
        breadth: int = 1,
        generator: torch.Generator | None = None,
    ) -> ReasonerOutput:
        """Iterate to rest and return the answer that rests most.

        Parameters
        ----------
        questions
            (B, height, W).
        depth
            The most evaluations.
        tolerance
            The relative residual at which a puzzle is at rest; ``None`` makes exactly ``depth`` evaluations.
        breadth
            How many random starts are tried; of a puzzle's trajectories the one with the smallest residual is kept.
        """
        # A large grid's residual may stand still for a long time while the answer spreads, so nothing gives up early.
        stop = Steps(depth) if tolerance is None else Tolerance(rtol=tolerance, max_evaluations=depth, patience=None)
        if breadth < 1:
            raise ConfigError(f"breadth={breadth}: give a whole number from 1 up.")
        tries = (self(questions, self.start(questions, generator), stop=stop) for _ in range(breadth))
        return reduce(_calmer, tries)


def _calmer(a: ReasonerOutput, b: ReasonerOutput) -> ReasonerOutput:
    """Take each puzzle from the output in which it has the smaller residual; evaluations add up."""
    x, y = a.solution, b.solution
    take = y.residual < x.residual  # (B,)

    def pick(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(take.view(-1, *[1] * (old.ndim - 1)), new, old)

    outcome = replace(
        x.outcome,
        status=pick(x.outcome.status, y.outcome.status),
        calls=x.outcome.calls + y.outcome.calls,
        limit=x.outcome.limit + y.outcome.limit,
    )
    solution = Solution(
        value=pick(x.value, y.value),
        residual=pick(x.residual, y.residual),
        evaluations=x.evaluations + y.evaluations,
        outcome=outcome,
    )
    return ReasonerOutput(logits=pick(a.logits, b.logits), solution=solution)
