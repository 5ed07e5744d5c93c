"""Accuracy and convergence of a reasoner by depth."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attractor.models.reasoning import Reasoner
from attractor.solve import Steps


@dataclass(frozen=True, kw_only=True)
class DepthPoint:
    """After at most ``depth`` evaluations: the shares of exact and of converged grids, and the median residual."""

    depth: int
    exact: float
    converged: float
    residual: float


@dataclass(frozen=True, kw_only=True)
class DepthEvaluation:
    """Shares of exact and of converged grids by depth and at the end of each grid's trajectory, and its mean evaluations.

    ``accuracy_given_converged`` is the share of converged grids that are right in every cell; NaN if none converged.
    """

    num_puzzles: int
    points: tuple[DepthPoint, ...]
    exact: float
    converged: float
    accuracy_given_converged: float
    evaluations: float


@torch.no_grad()
def read_depths(
    model: Reasoner,
    questions: Tensor,
    depths: Sequence[int],
    *,
    init_state: Tensor | None = None,
    tolerance: float = 0.0,
    noise: float | None = None,
    halting: bool = False,
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Iterate over increasing ``depths`` of one trajectory per puzzle of ``questions`` (B, height, W).

    A puzzle whose residual is below ``tolerance`` at one of the depths, or with ``halting`` one whose halting logit is above
    0, is left out from then on. ``noise`` is that of :meth:`Reasoner.make_update`.

    Yields, for the M puzzles that were not left out at an earlier depth, their indices (M,) on the CPU, logits (M, height,
    W, classes) on the model's device, residuals (M,) float32 on the CPU, and halting logits (M,) on the CPU or None.
    """
    state = model.init_state(questions) if init_state is None else init_state
    active, reached = torch.arange(len(questions)), 0
    # A solver with memory goes through all depths in one solve: restarting it would change its trajectory.
    for solve_depths in [[d] for d in depths] if model.solver.is_memoryless else [list(depths)]:
        trace = [depth - reached for depth in solve_depths]
        solution = model(questions[active], state, stop=Steps(trace[-1]), noise=noise, trace=trace).solution
        state, reached = solution.value, solve_depths[-1]
        is_active = torch.ones(len(active), dtype=torch.bool)
        for traced, residual in zip(solution.trace, solution.trace_residual.float().cpu(), strict=True):
            logits, halt = model.decode(traced[is_active])
            halt = None if halt is None else halt.cpu()
            yield active[is_active], logits, residual[is_active], halt
            if halting and halt is not None:
                is_active[is_active.clone()] &= ~(halt > 0)
            is_active &= ~(residual < tolerance)
            if not is_active.any():
                return
        active, state = active[is_active], state[is_active]


@torch.no_grad()
def evaluate_depths(
    model: Reasoner,
    questions: Tensor,
    answers: Tensor,
    *,
    depths: Sequence[int],
    tolerance: float = 1e-4,
    batch_size: int = 100,
    advance: Callable[[int], None] = lambda n: None,
) -> DepthEvaluation:
    """Evaluate every grid at increasing ``depths`` of one trajectory.

    Parameters
    ----------
    questions, answers
        (N, height, W); questions on the model's device. Results are kept on the CPU.
    tolerance
        A grid whose residual is below it at one of the depths has converged: it keeps the answer it has then.
    advance
        Called with the number of grids that are finished.
    """
    answers = answers.cpu()
    shape = (len(depths), len(questions))
    exact, residual = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    evaluations = torch.full(shape[1:], float(depths[-1]))
    for first in range(0, len(questions), batch_size):
        batch = questions[first : first + batch_size]
        num_open = len(batch)
        for row, (active, logits, residuals, _) in enumerate(read_depths(model, batch, depths, tolerance=tolerance)):
            active = first + active
            # A result holds for all later depths, until one of them overwrites it.
            exact[row:, active] = (logits.argmax(dim=-1).cpu() == answers[active]).flatten(1).all(dim=1)
            residual[row:, active] = residuals
            converged = residuals < tolerance
            evaluations[active[converged]] = depths[row]
            num_open -= int(converged.sum())
            advance(int(converged.sum()))
        advance(num_open)
    has_converged = residual < tolerance
    return DepthEvaluation(
        num_puzzles=len(questions),
        points=tuple(
            DepthPoint(depth=d, exact=_share(e), converged=_share(c), residual=float(r.median()))
            for d, e, c, r in zip(depths, exact, has_converged, residual, strict=True)
        ),
        exact=_share(exact[-1]),
        converged=_share(has_converged[-1]),
        accuracy_given_converged=_share(exact[-1][has_converged[-1]]),
        evaluations=float(evaluations.mean()),
    )


def trajectory(
    model: Reasoner,
    question: Tensor,
    depths: Sequence[int],
    *,
    init_state: Tensor | None = None,
    tolerance: float = 0.0,
) -> tuple[list[Tensor], list[float]]:
    """Return class probabilities (height, width, classes) and the residual of one grid (height, width) at each depth.

    The trajectory starts from ``init_state`` (1, height, width, state width), by default a new one, and ends when the
    residual is below ``tolerance``.
    """
    frames, residuals = [], []
    for _, logits, residual, _ in read_depths(
        model, question[None], depths, init_state=init_state, tolerance=tolerance
    ):
        frames.append(logits[0].softmax(dim=-1).cpu())
        residuals.append(float(residual[0]))
    return frames, residuals


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
