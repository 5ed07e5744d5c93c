"""The base class of all reasoners: an update of a state, solved for its fixed point, and a decoder of the state.

A model defines the initial state, one evaluation of its update, and how to decode an answer. Training supervises
*segments* of ``evaluations_per_segment`` evaluations; gradients flow through the last ``backprop_steps`` of them.
Inference iterates the same update until each puzzle has converged.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attractor.config import config_class, require_whole
from attractor.errors import ConfigError, DataError
from attractor.gradient import Gradient, OneStep, Phantom
from attractor.layer import fixed_point
from attractor.models.budget import stop_rule
from attractor.solve import PartialUpdate, Picard, Solution, Solver, Steps, StopRule, Tolerance

# On a large grid the residual can stay constant for a long time while information travels: never stop early.
SOLVE_BUDGET = Tolerance(rtol=1e-4, max_evaluations=1024, patience=None)


@config_class
class ReasonerConfig(ABC):
    """Settings that all reasoners share.

    Attributes
    ----------
    num_symbols, num_classes
        Number of symbols in a cell of a question, and in a cell of an answer.
    evaluations_per_segment
        Evaluations of the update between two losses in training.
    backprop_steps
        Gradients flow through so many evaluations of a segment, counted from the last.
    """

    num_symbols: int = 10
    num_classes: int = 10
    evaluations_per_segment: int = 2
    backprop_steps: int = 1

    def __post_init__(self) -> None:
        require_whole(self, 1, "num_symbols", "num_classes", "evaluations_per_segment", "backprop_steps")
        if self.backprop_steps > self.evaluations_per_segment:
            raise ConfigError(
                f"backprop_steps={self.backprop_steps}: must lie between 1 and "
                f"evaluations_per_segment={self.evaluations_per_segment}."
            )

    @property
    def cost_depends_on_clues(self) -> bool:
        """Whether an evaluation computes only what the clues of a question leave open."""
        return False

    @abstractmethod
    def build(self) -> "Reasoner":
        """Return a new model with random weights."""


Draw = Callable[[Sequence[int], torch.dtype], Tensor | None]


def normal_noise(std: float, questions: Tensor) -> Draw:
    """Return ``draw(shape, dtype)`` of normal noise on the device of ``questions``, or of None if ``std`` is 0.

    It has a generator of its own: the noise differs between the evaluations of a solve, unlike dropout.
    """
    if not std:
        return lambda shape, dtype: None
    device = questions.device
    generator = None if questions.is_meta else torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))
    return lambda shape, dtype: std * torch.randn(shape, generator=generator, dtype=dtype, device=device)


@dataclass(frozen=True, kw_only=True)
class ReasonerOutput:
    """The result of a segment or of a solve.

    Attributes
    ----------
    logits
        (B, height, W, classes).
    solution
        Its ``value`` is the state (B, height, W, state width).
    halt
        (B,), the logit that the answer is right in every cell; ``None`` for models without a halting head.
    auxiliary
        (B, height, W, auxiliary classes), in training only; ``None`` for models without an auxiliary head.
    init_state
        (B, height, W, state width), the initial state that ``Reasoner.solve`` kept for each puzzle.
    """

    logits: Tensor
    solution: Solution
    halt: Tensor | None = None
    auxiliary: Tensor | None = None
    init_state: Tensor | None = None


class Reasoner(nn.Module, ABC):
    """Questions are integer grids (B, height, W).

    Attributes
    ----------
    random_init
        Whether initial states are random.
    segment_tolerance
        The relative residual at which a puzzle's segment ends early; 0 for never.
    auxiliary
        The head of :class:`attractor.objectives.DeepSupervision`'s auxiliary loss; ``None`` for models without one.
    noise_refusal
        For models that cannot use noise: why.
    """

    random_init = False
    segment_tolerance = 0.0
    auxiliary: nn.Module | None
    noise_refusal: str | None = None

    def __init__(
        self, config: ReasonerConfig, *, solver: Solver | None = None, gradient: Gradient | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.num_symbols, self.evaluations_per_segment = config.num_symbols, config.evaluations_per_segment
        self.solver = solver or Picard()
        self.gradient = gradient or Phantom(steps=config.backprop_steps)
        self.auxiliary = None

    @abstractmethod
    def init_state(self, questions: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the initial state, (B, height, W, state width)."""

    @abstractmethod
    def make_update(self, questions: Tensor, noise: float | None = None) -> Callable[[Tensor], Tensor]:
        """Return the update ``state -> state`` for these questions.

        ``noise`` is the standard deviation of the noise in every evaluation; None for the model's own.
        """

    def penalized_map(self, questions: Tensor, state: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return the map whose Jacobian training can penalize, and the point for it; by default update and state."""
        return self.make_update(questions), state

    @abstractmethod
    def decode(self, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the answer's logits (B, height, W, classes) and the halting logit (B,), or ``None`` without a head."""

    def forward(
        self,
        questions: Tensor,
        state: Tensor | None = None,
        *,
        depth: int | None = None,
        tolerance: float | None = None,
        max_evaluations: int | None = None,
        stop: StopRule | None = None,
        noise: float | None = None,
        trace: bool | Collection[int] = False,
    ) -> ReasonerOutput:
        """Update ``state`` and decode the answer. Without a budget, make one segment.

        Parameters
        ----------
        questions
            (B, height, W), int64 or int32.
        state
            (B, height, W, state width); by default a new initial state.
        depth
            Make exactly so many evaluations. With gradients on, the last ``backprop_steps`` of them are tracked.
        tolerance, max_evaluations
            Solve to this relative residual, with at most so many evaluations (by default 1e-4 and 1024).
        stop
            A stop rule for the solver, in place of the three above.
        noise
            See :meth:`make_update`.
        trace
            See :func:`attractor.fixed_point`.

        Raises
        ------
        DataError
            For questions that are not grids of this model's symbols.
        ConfigError
            For contradictory budgets.
        """
        # On accelerators the range check would synchronize; there an unknown symbol fails in the embedding.
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
        budget = stop_rule(depth, tolerance, max_evaluations, default=SOLVE_BUDGET)
        if stop is None:
            stop = budget if budget is not None and depth is None else self._fixed_depth(depth)
        elif budget is not None:
            raise ConfigError("give stop, or depth, tolerance and max_evaluations, not both.")
        state = self.init_state(questions) if state is None else state
        solution = fixed_point(
            # In training, shapes stay the same, so that the network is not compiled for every number of puzzles.
            self.make_update(questions, noise)
            if stop.is_fixed_depth or self.training
            else _ActivePuzzles(self, questions, noise),
            state,
            solver=self.solver,
            stop=stop,
            gradient=self.gradient,
            equation_dims=state.ndim - 1,
            trace=trace,
        )
        logits, halt = self.decode(solution.value)
        auxiliary = None if self.auxiliary is None or not self.training else self.auxiliary(solution.value)
        return ReasonerOutput(logits=logits, solution=solution, halt=halt, auxiliary=auxiliary)

    def _fixed_depth(self, depth: int | None) -> StopRule:
        """Return the solver's part of ``depth`` evaluations, by default a segment; the gradient makes the others."""
        tracked = self.gradient.num_steps if torch.is_grad_enabled() else 0
        if depth is not None and depth < tracked:
            raise ConfigError(f"depth={depth}: with gradients on, give at least {tracked}, or use torch.no_grad().")
        if depth is None and self.segment_tolerance and (most := self.evaluations_per_segment - tracked):
            return Tolerance(rtol=self.segment_tolerance, max_evaluations=most, patience=None)
        return Steps((self.evaluations_per_segment if depth is None else depth) - tracked)

    @torch.no_grad()
    def solve(
        self,
        questions: Tensor,
        *,
        depth: int | None = None,
        tolerance: float | None = None,
        max_evaluations: int | None = None,
        breadth: int = 1,
        noise: float | None = None,
        generator: torch.Generator | None = None,
    ) -> ReasonerOutput:
        """Solve each puzzle and return its answer with the lowest residual. Converged puzzles are not computed again.

        Parameters
        ----------
        questions, depth, tolerance, max_evaluations
            See :meth:`forward`; the default is a tolerance.
        breadth
            The number of restarts. For each puzzle the one with the lowest residual is kept.
        noise
            See :meth:`make_update`. With noise, restarts from one fixed state differ too.
        generator
            Draws the initial states; on the CPU, so that a seed means the same on every device.
        """
        self.check_restarts(breadth, noise)
        stop = stop_rule(depth, tolerance, max_evaluations, default=SOLVE_BUDGET) or SOLVE_BUDGET
        states = (self.init_state(questions, generator) for _ in range(breadth))
        return reduce(
            lower_residual, (replace(self(questions, s, stop=stop, noise=noise), init_state=s) for s in states)
        )

    def check_restarts(self, breadth: int, noise: float | None = None) -> None:
        """Refuse noise that the model cannot use, and a ``breadth`` for which its restarts would all be the same."""
        if noise is not None and noise < 0:
            raise ConfigError(f"noise={noise}: cannot be negative.")
        if noise and self.noise_refusal is not None:
            raise ConfigError(f"noise={noise}: this model has no use for noise: {self.noise_refusal}; leave it out.")
        if breadth < 1:
            raise ConfigError(f"breadth={breadth}: give a whole number from 1 up.")
        if breadth > 1 and not self.random_init and not noise:
            advice = "use breadth 1" if self.noise_refusal else "use breadth 1, or add noise"
            raise ConfigError(
                f"breadth={breadth}: this model has one fixed initial state, so restarts change nothing; {advice}."
            )

    def flops_per_puzzle(self, num_cells: int, evaluations: float | None = None, *, training: bool = False) -> float:
        """Return the floating-point operations for one puzzle: the evaluations, and decoding the answer.

        Parameters
        ----------
        evaluations
            By default those of a segment.
        training
            Add the backward pass through the tracked evaluations. The result is NaN for gradients that solve an
            adjoint system. Recomputation and the Jacobian penalty are not counted.
        """
        evaluations = self.evaluations_per_segment if evaluations is None else evaluations
        evaluation, backward, decode = _count_flops(self.config, num_cells)
        forward = evaluations * evaluation + decode
        if not training:
            return forward
        if self.gradient.num_steps:
            tracked = min(self.gradient.num_steps, evaluations) * backward
        elif isinstance(self.gradient, OneStep):  # differentiates one more evaluation, at the solution
            tracked = evaluation + backward
        else:
            tracked = float("nan")
        return forward + tracked + 2 * decode  # the backward pass of decoding costs twice as much as decoding


@lru_cache(maxsize=64)
def _count_flops(config: ReasonerConfig, num_cells: int) -> tuple[float, float, float]:
    """Return the operations of one evaluation, of its backward pass and of decoding, for one puzzle."""
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        model = config.build().eval()
        side = isqrt(num_cells)
        questions = torch.zeros(1, *((side, side) if side**2 == num_cells else (1, num_cells)), dtype=torch.long)
        update, state = model.make_update(questions), model.init_state(questions)
        evaluation, next_state = _count(lambda: update(state))
        backward, _ = _count(lambda: next_state.sum().backward())
        decode, _ = _count(lambda: model.decode(state)[0])
    return evaluation, backward, decode


def _count(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    # FlopCounterMode has no formula for the fused attention of a CPU; the plain one makes the same products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        result = run()
    return float(counter.get_total_flops()), result


class _ActivePuzzles(PartialUpdate):
    """The update of a batch, computed only for the puzzles that have not converged."""

    def __init__(self, model: Reasoner, questions: Tensor, noise: float | None) -> None:
        self._model, self._questions, self._noise = model, questions, noise
        self._all = model.make_update(questions, noise)

    def __call__(self, y: Tensor) -> Tensor:
        return self._all(y)

    def at(self, y: Tensor, index: Tensor) -> Tensor:
        return self._model.make_update(self._questions[index], self._noise)(y)


def lower_residual(a: ReasonerOutput, b: ReasonerOutput) -> ReasonerOutput:
    """Take each puzzle from the output with the lower residual, ``a`` if equal. Evaluations add up."""
    x, y = a.solution, b.solution
    take = y.residual.nan_to_num(torch.inf) < x.residual.nan_to_num(torch.inf)  # (B,)

    def pick(old: Any, new: Any) -> Any:
        return None if old is None else torch.where(take.view(-1, *[1] * (old.ndim - 1)), new, old)

    outcome = replace(
        x.outcome,
        status=pick(x.outcome.status, y.outcome.status),
        residual=pick(x.outcome.residual, y.outcome.residual),
        calls=x.outcome.calls + y.outcome.calls,
        limit=x.outcome.limit + y.outcome.limit,
    )
    solution = Solution(
        value=pick(x.value, y.value),
        residual=pick(x.residual, y.residual),
        evaluations=x.evaluations + y.evaluations,
        outcome=outcome,
    )
    return ReasonerOutput(
        logits=pick(a.logits, b.logits),
        solution=solution,
        halt=pick(a.halt, b.halt),
        init_state=pick(a.init_state, b.init_state),
    )
