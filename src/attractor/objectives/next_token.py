"""Next-token prediction on packed rows of text."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attractor.config import require_whole
from attractor.errors import ConfigError
from attractor.nn import unwrap_model
from attractor.objectives.batch import split_batch
from attractor.solve import Solution, Status, Update


class Rows(Protocol):
    """Where tokens come from: row ``n`` of a run is always the same."""

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        """Return tokens and positions, both (num, length) int64."""
        ...


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """``batch_size`` rows of ``length`` tokens a batch, over all processes; ``seed`` of their order.

    ``contraction`` is the weight of the mean squared :func:`growth` of a disturbance of the solution, added to the loss of a model
    that solves; 0 leaves it out.
    """

    batch_size: int = 16
    length: int = 512
    seed: int = 0
    contraction_penalty: float = 0.0

    def __post_init__(self) -> None:
        require_whole(self, 1, "batch_size")
        require_whole(self, 2, "length")
        require_whole(self, 0, "seed")
        if not 0 <= self.contraction_penalty < float("inf"):
            raise ConfigError(f"NextTokenConfig(contraction={self.contraction_penalty!r}): give a weight from 0 up.")


def growth(update: Update, y: Tensor, *, iterations: int = 3, size: float = 0.03) -> Tensor:
    """Return by which factor one call of ``update`` changes a disturbance of ``y`` (B, T, D), for every token, (B, T).

    A random disturbance of ``size`` times each token's norm is first sent through ``update`` ``iterations`` times, brought back to
    that size each time, so that it turns to where it grows most. Differences instead of derivatives: fused attention has no
    second derivative, and over this distance bf16 still resolves them.
    """
    y = y.detach()
    radius = size * y.norm(dim=-1, keepdim=True)

    def scaled(v: Tensor) -> Tensor:
        return v * (radius / v.norm(dim=-1, keepdim=True).clamp_min(1e-12))

    v = scaled(torch.randn_like(y))
    with torch.no_grad():
        rest = update(y)
        for _ in range(iterations):
            v = scaled(update(y + v) - rest)
    return (update(y + v) - update(y)).norm(dim=-1) / radius[..., 0].clamp_min(1e-12)


class NextToken:
    """An :class:`attractor.training.Objective` for language models.

    The model is called with ``input_ids``, ``position_ids`` and ``labels``; its output has ``loss`` and, where something was
    solved, ``solution``, ``proposal`` and ``hidden``. It has ``flops_per_token(length, evaluations, training)``,
    ``inspect(input_ids)`` and, for ``contraction``, ``update_of(output, position_ids)``, the map that was solved.

    Parameters
    ----------
    rows
        See there.
    config
        See there.
    peak_flops
        Of the device, per second; None leaves the share of it that is used (MFU) out of the log.
    rank, world_size
        This process among those that share every batch. Rows are counted over all of them, so that a resumed run with more or
        fewer processes continues where the previous one stopped.
    """

    def __init__(
        self,
        rows: Rows,
        config: NextTokenConfig,
        *,
        peak_flops: float | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._rows, self._config, self._peak_flops = rows, config, peak_flops
        self._first_row, self._num_rows = split_batch(config.batch_size, rank, world_size)
        self._num_ranks = world_size
        self._row = 0
        self._calls: list[int] = []
        self._since = 0, time.perf_counter()
        self._first: Tensor | None = None

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(model.parameters()).device
        batch = self._rows.batch(self._row + self._first_row, self._num_rows)
        tokens, positions = (t.to(device, non_blocking=True) for t in batch)
        self._row += self._config.batch_size
        self._first = tokens[:1]
        output: Any = model(input_ids=tokens, position_ids=positions, labels=tokens)
        loss, metrics = output.loss, {}
        if (solution := output.solution) is not None:
            self._calls.append(solution.outcome.calls)
            metrics = {
                "evaluations": solution.evaluations.float().mean(),
                "calls": torch.tensor(float(solution.outcome.calls)),
                "residual": solution.residual.mean(),
                "unconverged": _unsolved(solution),
            }
            start, end = output.proposal.detach().float(), output.hidden.detach().float()
            metrics["proposal_distance"] = ((end - start).norm(dim=-1) / start.norm(dim=-1).clamp_min(1e-12)).mean()
            if self._config.contraction_penalty:
                factor = growth(unwrap_model(model).update_of(output, positions), output.hidden)
                loss = loss + self._config.contraction_penalty * factor.square().mean()
                metrics["growth"] = factor.detach().mean()
        return loss, metrics

    def diagnostics(self, model: nn.Module) -> dict[str, float]:
        """Return tokens so far, tokens/s since the last call, MFU, and what the model says of itself."""
        (before, begun), now = self._since, time.perf_counter()
        done = self._row * self._config.length
        rate = (done - before) / (now - begun)
        figures = {"tokens": float(done), "tokens/s": rate}
        if self._peak_flops is not None:
            # Linear in the number of evaluations, so that their mean counts every batch since the last call.
            calls = sum(self._calls) / len(self._calls) if self._calls else 1.0
            work = unwrap_model(model).flops_per_token(self._config.length, calls, training=True)
            figures["mfu"] = rate * work / (self._num_ranks * self._peak_flops)
        if self._first is not None:
            figures |= unwrap_model(model).diagnostics(self._first)
        self._calls.clear()
        self._since = done, time.perf_counter()
        return figures

    def state_dict(self) -> dict[str, Tensor]:
        return {"row": torch.tensor(self._row)}

    def load_state_dict(self, states: Sequence[dict[str, Tensor]]) -> None:
        self._row = int(states[0]["row"])  # the same on all ranks
        self._since = self._row * self._config.length, time.perf_counter()


def _unsolved(solution: Solution) -> Tensor:
    """Return the share of equations that gave up, or still moved when no evaluation was left."""
    status, outcome = solution.outcome.status, solution.outcome
    gave_up = status > Status.CONVERGED
    out_of_time = outcome.checked and outcome.calls == outcome.limit
    return (gave_up | (status == Status.ACTIVE) if out_of_time else gave_up).float().mean()
