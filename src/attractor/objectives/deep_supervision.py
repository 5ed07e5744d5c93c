"""Deep supervision with a carried state: every optimiser step refines a batch by one segment and judges it.

Each sequence of the batch counts its own segments. When it has had ``max_segments``, or is solved and chance says so, it is
replaced by a fresh question with a fresh state; the others carry theirs on, detached. So the network meets states of every
age, near the answer and far from it, and learns to rest at the right one (TRM, arXiv:2510.04871; EqR, arXiv:2605.21488).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from attractor.config import require_whole, suggestion
from attractor.errors import ConfigError
from attractor.gradient import jacobian_penalty
from attractor.nn import unwrap_model
from attractor.objectives.batch import split_batch

Grids = NDArray[np.uint8]  # (N, height, W)
Augment = Callable[[Grids, Grids, np.random.Generator], tuple[Grids, Grids]]


@dataclass(frozen=True, kw_only=True)
class DeepSupervisionConfig:
    """How a batch turns over.

    Attributes
    ----------
    batch_size
        Questions worked on at a time, over all processes.
    max_segments
        Segments after which a question is replaced.
    leave_solved
        The chance, after each segment, that a solved question is replaced at once.
    leave_halted
        Whether a question is replaced when the model's halting head takes it for solved, as TRM and HRM train.
    exploration
        The chance with which such a question has to stay for a random number of segments all the same.
    cross_entropy
        ``"softmax"``, or ``"stablemax"``: see :func:`stablemax_cross_entropy`.
    halting_weight
        Weight of the halting head's loss, where the model has one.
    jacobian_weight
        Weight of :func:`attractor.jacobian_penalty` at the state where a segment ends, which makes the update contract. Attention
        has it where its kernel can be differentiated twice.
    """

    batch_size: int = 64
    max_segments: int = 8
    leave_solved: float = 0.0
    leave_halted: bool = False
    exploration: float = 0.1
    cross_entropy: str = "softmax"
    halting_weight: float = 0.5
    jacobian_weight: float = 0.0

    def __post_init__(self) -> None:
        require_whole(self, 1, "batch_size", "max_segments")
        for name in ("leave_solved", "exploration"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"deep supervision: {name}={getattr(self, name)} must lie in [0, 1].")
        for name in ("halting_weight", "jacobian_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"deep supervision: {name}={getattr(self, name)} cannot be negative.")
        if self.cross_entropy not in LOSSES:
            raise ConfigError(f"cross_entropy={self.cross_entropy!r}: {suggestion(self.cross_entropy, LOSSES)}")


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of ``logits`` (N, classes) where ``exp`` is replaced by ``1 + x`` above zero and ``1 / (1 − x)`` below.

    Its gradient does not vanish when logits grow (Prieto et al. 2025, arXiv:2501.04697).
    """
    x = logits.float()
    return F.nll_loss(F.log_softmax(x.sign() * x.abs().log1p(), dim=-1), targets)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": F.cross_entropy,
    "stablemax": stablemax_cross_entropy,
}


class DeepSupervision:
    """An :class:`attractor.training.Objective` for models that refine a state.

    Parameters
    ----------
    questions, answers
        Integer arrays (N, height, W), which may be mapped from disk.
    config
        See there.
    start
        ``start(questions) -> state``, the model's fresh state.
    device
        Where the model is.
    held_out
        Questions and answers (N, height, W), of which the log says how many the model, with its latest weights, solves in
        ``max_segments`` segments.
    augment
        ``augment(questions, answers, rng)`` draws a random symmetry of each pair.
    peak_flops
        Of the device, per second; None leaves the share of it that is used (MFU) out of the log.
    rank, world_size
        This process among those that share every batch. Each draws its own questions.

    The model is called as ``model(questions, state)`` and returns ``logits`` (B, height, W, classes), ``solution`` and ``halt``;
    for MFU it also has ``flops_per_puzzle(num_cells, training)``.
    """

    def __init__(
        self,
        questions: Grids,
        answers: Grids,
        config: DeepSupervisionConfig,
        *,
        start: Callable[[Tensor], Tensor],
        augment: Augment,
        device: torch.device | None = None,
        held_out: tuple[Tensor, Tensor] | None = None,
        peak_flops: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rank, self._world_size = rank, world_size
        self._begin, self._num = split_batch(config.batch_size, rank, world_size)
        self._all = questions, answers
        self._config, self._start, self._augment, self._device = config, start, augment, device
        self._held_out, self._peak_flops = held_out, peak_flops
        self._since = 0, time.perf_counter()  # segments since the last look at the clock
        self._carry: dict[str, Tensor] | None = None

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        config = self._config
        carry = self._replace(self._carry) if self._carry is not None else self._first()
        output: Any = model(carry["questions"], carry["state"])
        answers = carry["answers"]
        loss = LOSSES[config.cross_entropy](output.logits.flatten(0, -2), answers.flatten())
        solved = (output.logits.argmax(dim=-1) == answers).flatten(1).all(dim=1)
        metrics = {"exact": solved.float().mean(), "residual": output.solution.residual.mean()}
        segments = carry["segments"] + 1
        self._since = self._since[0] + config.batch_size, self._since[1]
        leaving = segments >= config.max_segments
        if config.leave_solved:
            leaving |= solved & (self._chance(solved) < config.leave_solved)
        if output.halt is not None:
            judged = F.binary_cross_entropy_with_logits(output.halt.float(), solved.float())
            loss = loss + config.halting_weight * judged
            metrics |= {"halting": judged.detach()}
            if config.leave_halted:
                least = (2 + (config.max_segments - 1) * self._chance(solved)).long()
                stays = (self._chance(solved) < config.exploration) & (segments < least)
                leaving |= (output.halt > 0) & ~stays
        if config.jacobian_weight:
            penalty = jacobian_penalty(unwrap_model(model).make_update(carry["questions"]), output.solution.value)
            loss = loss + config.jacobian_weight * penalty
            metrics |= {"jacobian": penalty.detach()}
        state = output.solution.value.detach()
        leaving |= ~state.isfinite().flatten(1).all(dim=1)  # nothing good would come of them
        self._carry = {**carry, "state": state, "segments": segments, "leaving": leaving}
        return loss, metrics

    def _chance(self, like: Tensor) -> Tensor:
        return torch.rand(len(like)).to(like.device)

    def _draw(self, num: int) -> dict[str, Tensor]:
        index = torch.randint(len(self._all[0]), (num,)).numpy()
        # Seeded from torch's generator, so that a checkpoint of that one state is enough to resume exactly.
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        pair = self._augment(self._all[0][index], self._all[1][index], rng)
        questions, answers = (torch.from_numpy(np.ascontiguousarray(grids)).long().to(self._device) for grids in pair)
        segments = torch.zeros(num, dtype=torch.long, device=self._device)
        leaving = torch.zeros(num, dtype=torch.bool, device=self._device)
        state = self._start(questions)
        return {"questions": questions, "answers": answers, "state": state, "segments": segments, "leaving": leaving}

    def _first(self) -> dict[str, Tensor]:
        self._part()
        carry = self._draw(self._num)
        # Staggered, so that the batch never turns over all at once.
        staggered = torch.randint(self._config.max_segments, (self._num,))
        return {**carry, "segments": staggered.to(self._device)}

    def _part(self) -> None:
        """Let this rank's random numbers, which all ranks have alike until now, be its own."""
        if self._world_size > 1:
            torch.manual_seed(int(torch.randint(2**62, ())) + self._rank)

    def _replace(self, carry: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put fresh questions where some are leaving."""
        where = carry["leaving"].nonzero()[:, 0]
        if not len(where):
            return carry
        fresh = self._draw(len(where))
        return {name: value.index_put((where,), fresh[name]) for name, value in carry.items()}

    def diagnostics(self, model: nn.Module) -> dict[str, float]:
        """Return segments/s since the last call, each of one puzzle, MFU, and the share of held-out puzzles that is solved."""
        done, begun = self._since
        rate = done / (time.perf_counter() - begun)
        figures = {"segments/s": rate}
        if self._peak_flops is not None:
            work = unwrap_model(model).flops_per_puzzle(self._all[0][0].size, training=True)
            figures["mfu"] = rate * work / (self._world_size * self._peak_flops)
        if self._held_out is not None:
            figures["held_out"] = self._exact(model, *self._held_out)
        self._since = 0, time.perf_counter()
        return figures

    def _exact(self, model: nn.Module, questions: Tensor, answers: Tensor) -> float:
        model = unwrap_model(model).eval()
        devices = [questions.device] if questions.is_cuda else []
        with torch.random.fork_rng(devices), torch.no_grad():  # looking must not change the run
            state = self._start(questions)
            for _ in range(self._config.max_segments):
                output: Any = model(questions, state)
                state = output.solution.value
        model.train()
        return float((output.logits.argmax(dim=-1) == answers).flatten(1).all(dim=1).float().mean())

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._carry or {})

    def load_state_dict(self, states: Sequence[dict[str, Tensor]]) -> None:
        if len(states) == self._world_size:
            state = states[self._rank]
        else:  # the whole batch, divided anew
            mine = slice(self._begin, self._begin + self._num)
            state = {name: torch.cat([rank[name] for rank in states])[mine] for name in states[0]}
            self._part()
        self._carry = {name: value.to(self._device) for name, value in state.items()} or None
