"""What every reasoner is: an update of a state, iterated by the one solver, and a reading of the state.

A model says how a question is embedded, what one evaluation of its update does, where a trajectory starts and how an answer is
read. A *segment* is what one supervised training step makes of a state: ``segment`` evaluations, of which gradients flow through
the last ``tracked``. At inference the same iteration goes on, puzzle by puzzle, until it rests.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from attractor.config import require_whole
from attractor.errors import ConfigError, DataError
from attractor.fixed_point import fixed_point
from attractor.gradient import Gradient, OneStep, Phantom
from attractor.solve import PartialUpdate, Picard, Solution, Solver, Steps, StopRule, Tolerance

ONE_START = "this model starts every puzzle from one and the same state, so that more starts only cost; leave it at 1."


@dataclass(frozen=True, kw_only=True)
class ReasonerConfig:
    """What all reasoners have.

    Attributes
    ----------
    num_symbols, num_classes
        Symbols of a question's cell and of an answer's.
    segment
        Evaluations of one supervised segment.
    tracked
        How many of them, the last, gradients flow through.
    """

    num_symbols: int = 10
    num_classes: int = 10
    evaluations_per_segment: int = 2
    backprop_steps: int = 1

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_symbols", "num_classes", "evaluations_per_segment", "backprop_steps")
        if self.backprop_steps > self.evaluations_per_segment:
            raise ConfigError(
                f"backprop_steps={self.backprop_steps}: must lie between 1 and evaluations_per_segment={self.evaluations_per_segment}."
            )


@dataclass(frozen=True, kw_only=True)
class ReasonerOutput:
    """What a segment or a solve ended with.

    Attributes
    ----------
    logits
        (B, height, W, classes).
    solution
        How it was found; its ``value`` is the state.
    halt
        (B,), the logit of the answer being right in every cell, from models that have a head for it.
    start
        The states (B, height, W, state width) from which a solve came here: of several starts, each puzzle's that was kept.
    """

    logits: Tensor
    solution: Solution
    halt: Tensor | None = None
    start: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations for one puzzle, two per multiply-add; matrix products and convolutions only.

    Attributes
    ----------
    evaluation
        Of one evaluation of the update.
    differentiated
        Of the part of it that gradients flow through where it is tracked.
    reading
        Of reading the answer, and of judging it.
    """

    evaluation: float
    differentiated: float
    reading: float


class Reasoner(nn.Module, ABC):
    """Questions are integer grids (B, height, W). ``random_start`` says whether two trajectories of one question can differ."""

    random_start = False

    def __init__(
        self, config: ReasonerConfig, *, solver: Solver | None = None, gradient: Gradient | None = None
    ) -> None:
        super().__init__()
        self.num_symbols, self.evaluations_per_segment = config.num_symbols, config.evaluations_per_segment
        self.solver = solver or Picard()
        self.gradient = gradient or Phantom(steps=config.backprop_steps)

    @abstractmethod
    def start(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the state that a trajectory starts from, (B, height, W, state width)."""

    @abstractmethod
    def make_update(self, questions: Tensor) -> Callable[[Tensor], Tensor]:
        """Return one evaluation, ``state ↦ state``, for these questions."""

    @abstractmethod
    def read(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the answer's logits (B, height, W, classes), and the halting logit (B,) where there is a head for it."""

    @abstractmethod
    def work(self, num_cells: int) -> Work:
        """Return what a grid of ``num_cells`` costs."""

    def flops_per_puzzle(self, num_cells: int, evaluations: float | None = None, *, training: bool = False) -> float:
        """Return the floating-point operations for one puzzle of ``num_cells``: so many evaluations, and a reading.

        ``evaluations`` are a segment's if not given. When ``training``, the last ``tracked`` of them cost three times as much as a
        forward pass, which is once forward and twice on the way back; other gradients than the phantom one add such an evaluation.
        NaN where an adjoint solve decides. Recomputation and the penalty on the Jacobian are not counted.
        """
        work, evaluations = self.work(num_cells), self.evaluations_per_segment if evaluations is None else evaluations
        if not training:
            return evaluations * work.evaluation + work.reading
        back = 2 * work.differentiated
        if isinstance(self.gradient, Phantom):
            back *= min(self.gradient.steps, evaluations)
        elif isinstance(self.gradient, OneStep):
            back += work.evaluation
        else:
            back = float("nan")
        return evaluations * work.evaluation + back + 3 * work.reading

    def forward(
        self, questions: Tensor, state: Tensor | None = None, *, stop: StopRule | None = None
    ) -> ReasonerOutput:
        """Refine ``state`` (default: a fresh start) and read the answer.

        Without ``stop``, one segment: with gradients on, its last ``tracked`` evaluations carry them.
        """
        # On accelerators looking costs, and a foreign symbol ends in the embedding's own error.
        if (
            questions.ndim != 3
            or not questions.numel()
            or questions.dtype not in (torch.int64, torch.int32)
            or (questions.is_cpu and not 0 <= int(questions.min()) <= int(questions.max()) < self.num_symbols)
        ):
            raise DataError(
                f"questions are {tuple(questions.shape)} {questions.dtype}; give at least one grid (B, height, W) int64 of "
                f"symbols 0 to {self.num_symbols - 1}."
            )
        state = self.start(questions) if state is None else state
        # A phantom gradient's tracked steps are evaluations of the segment; other gradients look at where it ended.
        gradient = self.gradient
        tracked = gradient.steps if isinstance(gradient, Phantom) and torch.is_grad_enabled() else 0
        solution = fixed_point(
            _Refinement(self, questions) if stop and not stop.is_fixed_depth else self.make_update(questions),
            state,
            solver=self.solver,
            stop=Steps(self.evaluations_per_segment - tracked) if stop is None else stop,
            gradient=gradient,
            equation_dims=state.ndim - 1,
        )
        logits, halt = self.read(solution.value)
        return ReasonerOutput(logits=logits, solution=solution, halt=halt)

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
        """Iterate to rest and return the answer that rests most. Puzzles at rest cost nothing more.

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
        if breadth > 1 and not self.random_start:
            raise ConfigError(f"breadth={breadth}: {ONE_START}")
        starts = (self.start(questions, generator) for _ in range(breadth))
        return reduce(_calmer, (replace(self(questions, start, stop=stop), start=start) for start in starts))


class _Refinement(PartialUpdate):
    """The update of a batch of which puzzles at rest are left out."""

    def __init__(self, model: Reasoner, questions: Tensor) -> None:
        self._model, self._questions, self._whole = model, questions, model.make_update(questions)

    def __call__(self, y: Tensor) -> Tensor:
        return self._whole(y)

    def at(self, y: Tensor, index: Tensor) -> Tensor:
        return self._model.make_update(self._questions[index])(y)


def _calmer(a: ReasonerOutput, b: ReasonerOutput) -> ReasonerOutput:
    """Take each puzzle from the output in which it has the smaller residual; evaluations add up."""
    x, y = a.solution, b.solution
    take = y.residual.nan_to_num(torch.inf) < x.residual.nan_to_num(torch.inf)  # (B,)

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
    halt = None if a.halt is None or b.halt is None else pick(a.halt, b.halt)
    start = None if a.start is None or b.start is None else pick(a.start, b.start)
    return ReasonerOutput(logits=pick(a.logits, b.logits), solution=solution, halt=halt, start=start)
