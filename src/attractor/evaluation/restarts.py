"""Depth and breadth: restarts from random initial states, and the choice of one answer without knowing the truth."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from attractor.config import config_class, suggestion
from attractor.errors import ConfigError
from attractor.evaluation.puzzles import read_depths
from attractor.models.reasoning import Reasoner

SCORES = ("residual", "logit-window", "halting-logit")
SELECTIONS = (*SCORES, "majority", "top-4-majority")
HALTING = ("none", "residual", "logit")
WINDOW = 3  # changes of logits in a mean


@config_class
class EvaluationProtocol:
    """How a reasoner is evaluated.

    Attributes
    ----------
    depths, breadths
        Rising numbers of evaluations, and of restarts.
    selections
        Ways to choose among restarts, see :meth:`Restarts.select`.
    noise, halting
        See :func:`run_restarts`.
    seed
        Seed of the initial states and of the noise.
    search
        Whether to evaluate :func:`attractor.evaluation.run_search`, too.
    """

    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    breadths: tuple[int, ...] = (1,)
    selections: tuple[str, ...] = ("residual", "majority")
    noise: float | None = None
    halting: str = "none"
    seed: int = 0
    search: bool = False

    def __post_init__(self) -> None:
        for name in ("depths", "breadths"):
            values = getattr(self, name)
            if not values or min(values) < 1 or sorted(set(values)) != list(values):
                raise ConfigError(f"{name} {' '.join(map(str, values))}: give rising whole numbers from 1 up.")


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """K restarts of N puzzles, read at increasing depths.

    Attributes
    ----------
    answers
        (K, depths, N, height, W) uint8.
    scores
        (K, depths, N) each, low for an answer that is probably right: ``"residual"``; ``"logit-window"``, the norm of the
        change of a cell's logits from segment to segment, as a mean over cells and the last three changes (EqR); and for
        models with a halting head ``"halting-logit"``, its negative (PTRM).
    evaluations
        (K, depths, N), until the puzzle halted.
    """

    depths: tuple[int, ...]
    answers: Tensor
    scores: dict[str, Tensor]
    evaluations: Tensor

    @property
    def residual(self) -> Tensor:
        return self.scores["residual"]

    def select(self, selection: str, breadth: int) -> Tensor:
        """Return one answer for each puzzle among the first ``breadth`` restarts; (depths, N, height, W).

        ``selection`` is a score, whose lowest value is taken; ``"majority"``, the most frequent answer, and of equally
        frequent ones the one with the lowest residual; or ``"top-4-majority"``, the majority of the 4 restarts (or
        another number) with the lowest ``"logit-window"``.
        """
        answers = self.answers[:breadth]
        top = re.fullmatch(r"top-([1-9]\d*)-majority", selection)
        score = self.scores["logit-window" if top else "residual" if selection == "majority" else selection][:breadth]
        rank = score.nan_to_num(torch.inf).argsort(dim=0, stable=True).argsort(dim=0)  # 0 is the best
        if selection in SCORES:
            best = rank.argmin(dim=0)
        else:
            votes_too = rank < (int(top[1]) if top else breadth)
            equal = ((answers == one).flatten(3).all(dim=3) & votes_too for one in answers)
            votes = torch.stack([same.sum(dim=0) for same in equal]) * votes_too
            best = (votes * breadth + breadth - 1 - rank).argmax(dim=0)
        return answers.take_along_dim(best[None, :, :, None, None], dim=0)[0]


def check_selections(model: Reasoner, selections: Sequence[str], halting: str = "none") -> None:
    """Raise a ConfigError for ways to choose or to halt that do not exist, or that need a halting head."""
    for selection in selections:
        if selection not in SELECTIONS and not re.fullmatch(r"top-[1-9]\d*-majority", selection):
            raise ConfigError(f"there is no selection {selection!r}; {suggestion(selection, SELECTIONS)}")
    if halting not in HALTING:
        raise ConfigError(f"halting={halting!r}: {suggestion(halting, HALTING)}")
    if "halting-logit" in selections or halting == "logit":
        with torch.no_grad():
            device = next(model.parameters()).device
            state = model.init_state(torch.zeros(1, 2, 2, dtype=torch.long, device=device))
            if model.decode(state)[1] is None:
                raise ConfigError(
                    "this model has no halting head, so that its logit can neither select nor halt; choose the residual."
                )


@torch.no_grad()
def run_restarts(
    model: Reasoner,
    questions: Tensor,
    *,
    depths: Sequence[int],
    breadth: int = 1,
    noise: float | None = None,
    halting: str = "none",
    tolerance: float = 1e-4,
    batch_size: int = 256,
    advance: Callable[[int], None] = lambda n: None,
) -> Restarts:
    """Run every puzzle (N, height, W) from ``breadth`` initial states, and read it at increasing ``depths``.

    Parameters
    ----------
    noise
        Standard deviation of the noise in every evaluation; None for the model's own. Restarts from one fixed initial
        state differ by it.
    halting
        When a puzzle keeps its answer: ``"none"``, never; ``"residual"``, when its residual is below ``tolerance``;
        ``"logit"``, when its halting logit is above 0; both looked at after every segment, and at each of ``depths``.
    advance
        Called with the number of puzzles that are finished.

    Raises
    ------
    ConfigError
        For noise that the model cannot use, and for a breadth above 1 if its restarts would all be the same.
    """
    model.check_restarts(breadth, noise)
    check_selections(model, (), halting)
    read = _depths_to_read(depths, model.evaluations_per_segment, halting)
    rows = [read.index(depth) for depth in depths]
    shape = (breadth, len(read), len(questions))
    answers = torch.zeros(*shape, *questions.shape[1:], dtype=torch.uint8)
    evaluations, scores = torch.zeros(shape), {name: torch.full(shape, torch.nan) for name in SCORES}
    for k in range(breadth):
        for first in range(0, len(questions), batch_size):
            batch = questions[first : first + batch_size]
            state = model.init_state(batch)
            logits_at = {0: model.decode(state)[0].float().cpu()}  # of the whole batch, by depth
            budget: dict[str, Any] = {"tolerance": tolerance if halting == "residual" else 0.0, "noise": noise}
            readings = read_depths(model, batch, read, init_state=state, halting=halting == "logit", **budget)
            for row, (active, logits, residual, halt) in enumerate(readings):
                depth, index = read[row], first + active
                logits_at[depth] = logits_at[max(logits_at)].index_copy(0, active, logits.float().cpu())
                # A result holds for all later depths, until one of them overwrites it.
                answers[k, row:, index] = logits.argmax(dim=-1).to("cpu", torch.uint8)
                evaluations[k, row:, index] = depth
                scores["residual"][k, row:, index] = residual
                if row in rows or halting != "none":  # elsewhere, logits of segments before are missing
                    change = _logit_window(logits_at, depth, model.evaluations_per_segment)
                    scores["logit-window"][k, row:, index] = change[active]
                if halt is not None:
                    scores["halting-logit"][k, row:, index] = -halt.float()
                for old in [d for d in logits_at if d < depth - WINDOW * model.evaluations_per_segment]:
                    del logits_at[old]
            advance(len(batch))
    if scores["halting-logit"].isnan().all():  # no head
        del scores["halting-logit"]
    return Restarts(
        depths=tuple(depths),
        answers=answers[:, rows],
        scores={name: score[:, rows] for name, score in scores.items()},
        evaluations=evaluations[:, rows],
    )


def _depths_to_read(depths: Sequence[int], segment: int, halting: str) -> list[int]:
    """Return ``depths``, and the ends of segments before them at which logits are compared or puzzles may halt."""
    backs = WINDOW if halting == "none" else depths[-1]
    read = {depth - k * segment for depth in depths for k in range(backs + 1)}
    read |= set() if halting == "none" else set(range(segment, depths[-1], segment))
    return sorted(depth for depth in read if depth > 0)


def _logit_window(logits_at: dict[int, Tensor], depth: int, segment: int) -> Tensor:
    """Return the mean change (B,) of the logits over cells and the last segments back from ``depth``.

    The change of a cell is the norm over its classes, as in EqR's code.
    """
    steps = [max(depth - k * segment, 0) for k in range(WINDOW + 1)]
    changes = [logits_at[new] - logits_at[old] for new, old in pairwise(steps) if new > old]
    return torch.stack([change.norm(dim=-1).flatten(1).mean(dim=1) for change in changes]).mean(dim=0)


def exact(answers: Tensor, truth: Tensor) -> Tensor:
    """Return which answers (..., N, height, W) are right in every cell; (..., N) bool. Cells of ``truth`` below 0 do not count."""
    return ((answers == truth) | (truth < 0)).flatten(-2).all(dim=-1)


def auroc(score: Tensor, right: Tensor) -> float:
    """Return the probability that a right answer has a higher ``score`` (N,) than a wrong one; NaN if one kind is missing."""
    good, bad = score[right].double(), score[~right].double()
    if not len(good) or not len(bad):
        return float("nan")
    bad = bad.sort().values
    below, up_to = torch.searchsorted(bad, good), torch.searchsorted(bad, good, right=True)
    return float((below + up_to).double().mean() / (2 * len(bad)))


def binomial_interval(num_right: int, num: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % for a fraction (Wilson 1927), which is right for 0 % and 100 %, too."""
    z = 1.959963984540054
    center, scale = (num_right + z * z / 2) / (num + z * z), z / (num + z * z)
    half = scale * (num_right * (num - num_right) / num + z * z / 4) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)
