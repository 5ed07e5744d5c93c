"""Next-token prediction on packed rows of text."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attractor.config import config_class, require_whole
from attractor.errors import ConfigError
from attractor.nn import input_device, unwrap_model
from attractor.objectives.batch import split_batch
from attractor.solve import Solution, Status, Update
from attractor.solve.randomness import RepeatedRandomness


class Rows(Protocol):
    """A source of tokens, in rows of equal length. Row ``n`` is always the same."""

    def batch(self, first: int, num: int) -> tuple[Tensor, ...]:
        """Return the tokens and positions of ``num`` rows, (num, length) int64 each.

        A third tensor of labels is −100 at tokens that are not learnt, and else the token; without it, all are learnt.
        """
        ...


@config_class
class NextTokenConfig:
    """Settings of :class:`NextToken`.

    Attributes
    ----------
    batch_size, length
        Rows per batch, over all processes, and the tokens of each row.
    seed
        Seed of the order of the rows.
    contraction_penalty
        Weight of the mean squared :func:`growth` at the solution, which is added to the loss of a model that solves an
        equation. It makes the update contract. 0: no penalty.
    distillation
        Share, in [0, 1], of the KL divergence from the teacher in the loss; the rest is the next-token loss. The teacher
        is the checkpoint given to ``--init`` at depth 1: after ``attractor retrofit``, the original model. 0: no teacher.
    """

    batch_size: int = 16
    length: int = 512
    seed: int = 0
    contraction_penalty: float = 0.0
    distillation: float = 0.0

    def __post_init__(self) -> None:
        require_whole(self, 1, "batch_size")
        require_whole(self, 2, "length")
        require_whole(self, 0, "seed")
        if not 0 <= self.distillation <= 1:
            raise ConfigError(f"NextTokenConfig(distillation={self.distillation!r}): give a share in [0, 1].")
        if not 0 <= self.contraction_penalty < float("inf"):
            raise ConfigError(
                f"NextTokenConfig(contraction_penalty={self.contraction_penalty!r}): give a finite number from 0 up."
            )


def growth(update: Update, y: Tensor, *, iterations: int = 3, size: float = 0.03) -> Tensor:
    """Return the factor (B, T) by which ``update`` changes the norm of a perturbation of each token of ``y`` (B, T, D).

    A random perturbation, of ``size`` times each token's norm, passes through ``update`` ``iterations`` times and is
    scaled back to that size each time (power iteration), so that it turns to the direction of largest growth.
    Differences replace derivatives, because fused attention has no second derivative; they are large enough for bf16.
    """
    update, y = RepeatedRandomness(update), y.detach()
    radius = size * y.norm(dim=-1, keepdim=True)

    def rescale(v: Tensor) -> Tensor:
        return v * (radius / v.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    v = rescale(torch.randn_like(y))
    with torch.no_grad():
        image = update(y)
        for _ in range(iterations):
            v = rescale(update(y + v) - image)
    return (update(y + v) - update(y)).norm(dim=-1) / radius[..., 0].clamp_min(1e-12)


class NextToken:
    """An :class:`attractor.training.Objective` for language models.

    The model is called with ``input_ids``, ``position_ids``, ``labels`` and ``return_logits=False``. Its output has
    ``loss`` and, if it solved an equation, ``solution``, ``proposal`` and ``hidden``. It has the methods
    ``flops_per_token(length, evaluations, training)``, ``diagnostics(input_ids)`` and, for the contraction penalty,
    ``update_of(output, position_ids)``, which returns the update, and for a teacher ``divergence``.

    Parameters
    ----------
    teacher
        For ``config.distillation``: a model in evaluation mode.
    peak_flops
        Peak FLOP/s of the device, for the metric ``mfu`` (model FLOPs utilisation). None: no such metric.
    rank, world_size
        This process among those that share every batch. Rows are counted over all of them, so a resumed run with
        another number of processes continues at the right row.
    """

    def __init__(
        self,
        rows: Rows,
        config: NextTokenConfig,
        *,
        teacher: nn.Module | None = None,
        peak_flops: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows, self._config, self._peak_flops = rows, config, peak_flops
        self._teacher = teacher
        if config.distillation and teacher is None:
            raise ConfigError(f"text.distillation={config.distillation}: needs a teacher; give a checkpoint to --init.")
        self._first_row, self._num_rows = split_batch(config.batch_size, rank, world_size)
        self._world_size = world_size
        self._row = 0
        self._calls: list[int] = []  # of each batch since the last report
        self._last_report = 0, time.perf_counter()  # tokens, time
        self._example: Tensor | None = None  # (1, T), for the model's diagnostics

    def step(self, model: nn.Module, progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the next batch, and metrics of its solve."""
        device = input_device(model)
        batch = self._rows.batch(self._row + self._first_row, self._num_rows)
        tokens, positions, *given = (t.to(device, non_blocking=True) for t in batch)
        labels = given[0] if given else tokens
        self._row += self._config.batch_size
        self._example = tokens[:1]
        output: Any = model(input_ids=tokens, position_ids=positions, labels=labels, return_logits=False)
        loss, metrics = output.loss, dict[str, Tensor]()
        if share := self._config.distillation:
            inputs = {"input_ids": tokens, "position_ids": positions}
            divergence = unwrap_model(model).divergence(output, self._teacher, labels, **inputs)
            loss, metrics = (1 - share) * loss + share * divergence, {"divergence": divergence.detach()}
        if (solution := output.solution) is not None:
            self._calls.append(solution.outcome.calls)
            proposal, solved = output.proposal.detach().float(), output.hidden.detach().float()
            distance = (solved - proposal).norm(dim=-1) / proposal.norm(dim=-1).clamp_min(1e-12)
            metrics |= {
                "evaluations": solution.evaluations.float().mean(),
                "calls": torch.tensor(float(solution.outcome.calls)),
                "residual": solution.residual.mean(),
                "unconverged": _unconverged_fraction(solution),
                "proposal_distance": distance.mean(),
            }
            if self._config.contraction_penalty:
                factor = growth(unwrap_model(model).update_of(output, positions), output.hidden)
                loss = loss + self._config.contraction_penalty * factor.square().mean()
                metrics["growth"] = factor.detach().mean()
        return loss, metrics

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {}  # ``attractor evaluate`` measures held-out text

    def diagnostics(self, model: nn.Module) -> dict[str, float]:
        """Return the tokens so far, tokens per second since the last call, MFU, and the model's diagnostics."""
        (tokens_before, time_before), now = self._last_report, time.perf_counter()
        tokens = self._row * self._config.length
        rate = (tokens - tokens_before) / (now - time_before)
        metrics = {"tokens": float(tokens), "tokens_per_second": rate}
        if self._peak_flops is not None:
            # FLOPs are linear in the number of evaluations, so the mean number counts every batch since the last call.
            calls = sum(self._calls) / len(self._calls) if self._calls else 1.0
            flops = unwrap_model(model).flops_per_token(self._config.length, calls, training=True)
            metrics["mfu"] = rate * flops / (self._world_size * self._peak_flops)
        if self._example is not None:
            metrics |= unwrap_model(model).diagnostics(self._example)
        self._calls.clear()
        self._last_report = tokens, time.perf_counter()
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """Return the next row, which is the same on all ranks."""
        return {"row": torch.tensor(self._row)}

    def load_state_dict(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Continue at the row in ``states``."""
        self._row = int(states[0]["row"])
        self._last_report = self._row * self._config.length, time.perf_counter()


def _unconverged_fraction(solution: Solution) -> Tensor:
    """Return the fraction of equations that gave up, or were still active when the evaluation limit was reached."""
    status, outcome = solution.outcome.status, solution.outcome
    gave_up = status > Status.CONVERGED
    at_limit = outcome.checked and outcome.calls == outcome.limit
    return (gave_up | (status == Status.ACTIVE) if at_limit else gave_up).float().mean()
