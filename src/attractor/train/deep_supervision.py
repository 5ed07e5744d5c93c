"""Deep supervision with a carried state: every optimiser step refines a batch by one segment and judges it.

Each sequence of the batch counts its own segments. When it has had ``max_segments``, or is solved and chance says so, it is
replaced by a fresh question with a fresh state; the others carry theirs on, detached. So the network meets states of every
age, near the answer and far from it, and learns to rest at the right one (TRM, arXiv:2510.04871; EqR, arXiv:2605.21488).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attractor.config import require_whole
from attractor.errors import ConfigError

Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class DeepSupervisionConfig:
    """How a batch turns over.

    Attributes
    ----------
    batch_size
        Questions worked on at a time.
    max_segments
        Segments after which a question is replaced.
    leave_solved
        The chance, after each segment, that a solved question is replaced at once.
    """

    batch_size: int = 64
    max_segments: int = 8
    leave_solved: float = 0.0

    def __post_init__(self) -> None:
        require_whole(self, 1, "batch_size", "max_segments")
        if not 0 <= self.leave_solved <= 1:
            raise ConfigError(f"deep supervision: leave_solved={self.leave_solved} must lie in [0, 1].")


class DeepSupervision:
    """An :class:`attractor.train.Objective` for models that refine a state.

    Parameters
    ----------
    questions, answers
        Integer tensors (N, ...) of one shape.
    config
        See there.
    start
        ``start(questions) -> state``, the model's fresh state.
    augment
        ``augment(questions, answers)`` draws a random symmetry of each pair.

    The model is called as ``model(questions, state)`` and returns ``logits`` (B, ..., classes) and ``solution``.
    """

    def __init__(
        self,
        questions: Tensor,
        answers: Tensor,
        config: DeepSupervisionConfig,
        *,
        start: Callable[[Tensor], Tensor],
        augment: Augment,
    ) -> None:
        self._all = questions, answers
        self._config, self._start, self._augment = config, start, augment
        self._carry: dict[str, Tensor] | None = None

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        carry = self._carry if self._carry is not None else self._first()
        output: Any = model(carry["questions"], carry["state"])
        loss = F.cross_entropy(output.logits.flatten(0, -2), carry["answers"].flatten())
        solved = (output.logits.argmax(dim=-1) == carry["answers"]).flatten(1).all(dim=1)
        carry = {**carry, "state": output.solution.value.detach(), "segments": carry["segments"] + 1}
        self._carry = self._replace(carry, solved)
        return loss, {"exact": solved.float().mean(), "residual": output.solution.residual.mean()}

    def _draw(self, num: int) -> dict[str, Tensor]:
        questions, answers = self._all
        index = torch.randint(len(questions), (num,))
        q, a = self._augment(questions[index], answers[index])
        return {"questions": q, "answers": a, "state": self._start(q), "segments": torch.zeros(num, dtype=torch.long)}

    def _first(self) -> dict[str, Tensor]:
        carry = self._draw(self._config.batch_size)
        # Staggered, so that the batch never turns over all at once.
        return {**carry, "segments": torch.randint(self._config.max_segments, (self._config.batch_size,))}

    def _replace(self, carry: dict[str, Tensor], solved: Tensor) -> dict[str, Tensor]:
        leaving = carry["segments"] >= self._config.max_segments
        if self._config.leave_solved:
            leaving |= solved & (torch.rand(len(solved)) < self._config.leave_solved)
        where = leaving.nonzero()[:, 0]
        fresh = self._draw(len(where))
        return {name: value.index_put((where,), fresh[name]) for name, value in carry.items()}

    def inspect(self, model: nn.Module) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._carry or {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._carry = dict(state) or None
