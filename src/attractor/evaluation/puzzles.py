"""How well a reasoner answers, by depth and at rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from attractor.solve import Steps


class Reasoner(Protocol):
    """What is judged: something that refines a state and reads an answer from it."""

    def start(self, questions: Tensor) -> Tensor: ...

    def __call__(self, questions: Tensor, state: Tensor, *, stop: Steps) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class DepthPoint:
    """After at most ``depth`` evaluations: share of grids right in every cell, share at rest, and the median residual."""

    depth: int
    exact: float
    converged: float
    residual: float


@dataclass(frozen=True, kw_only=True)
class DepthEvaluation:
    """One trajectory per grid, judged along the way and where it ended.

    Attributes
    ----------
    points
        By depth.
    exact
        Share of grids that are right in every cell, at rest or at the last depth.
    settled
        Share that came to rest.
    exact_of_settled
        Share of right grids among those at rest: what rest is worth as a sign of being right. NaN where none rests.
    evaluations
        Mean per grid.
    """

    num_puzzles: int
    points: tuple[DepthPoint, ...]
    exact: float
    converged: float
    accuracy_given_converged: float
    evaluations: float


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
    """Iterate every grid through increasing ``depths`` and judge it at each.

    A grid whose residual is below ``tolerance`` at one of the depths has come to rest: it leaves the batch with the answer it has
    then, and costs nothing more. ``advance`` is told how many grids are done. ``questions`` are where the model is; what is known
    of them is kept on the CPU.
    """
    answers = answers.cpu()
    shape = (len(depths), len(questions))
    exact, residual = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    evaluations = torch.full(shape[1:], float(depths[-1]))
    for first in range(0, len(questions), batch_size):
        moving = torch.arange(first, min(first + batch_size, len(questions)))
        state, so_far = model.start(questions[moving]), 0
        for row, depth in enumerate(depths):
            output = model(questions[moving], state, stop=Steps(depth - so_far))
            so_far = depth
            # What is known at this depth holds for all later ones, until a later depth overwrites it.
            exact[row:, moving] = (output.logits.argmax(dim=-1).cpu() == answers[moving]).flatten(1).all(dim=1)
            residual[row:, moving] = output.solution.residual.cpu()
            rest = residual[row, moving] < tolerance
            evaluations[moving[rest]] = depth
            advance(int(rest.sum()))
            moving, state = moving[~rest], output.solution.value[~rest]
            if not len(moving):
                break
        advance(len(moving))
    converged = residual < tolerance
    right, rest = exact[-1], converged[-1]
    return DepthEvaluation(
        num_puzzles=len(questions),
        points=tuple(
            DepthPoint(depth=d, exact=_share(e), converged=_share(s), residual=float(r.median()))
            for d, e, s, r in zip(depths, exact, converged, residual, strict=True)
        ),
        exact=_share(right),
        converged=_share(rest),
        accuracy_given_converged=_share(right[rest]),
        evaluations=float(evaluations.mean()),
    )


@torch.no_grad()
def trajectory(
    model: Reasoner, question: Tensor, depths: Sequence[int], *, start: Tensor | None = None, tolerance: float = 0.0
) -> tuple[list[Tensor], list[float]]:
    """Watch one grid (height, width): class probabilities (height, width, classes) and the residual at each depth.

    From the state ``start`` (1, height, width, state width), or from a fresh one, until the residual is below ``tolerance``.
    """
    state, so_far = model.start(question[None]) if start is None else start, 0
    frames, residuals = [], []
    for depth in depths:
        output = model(question[None], state, stop=Steps(depth - so_far))
        state, so_far = output.solution.value, depth
        frames.append(output.logits[0].softmax(dim=-1).cpu())
        residuals.append(float(output.solution.residual[0]))
        if residuals[-1] < tolerance:
            break
    return frames, residuals


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
