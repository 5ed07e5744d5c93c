"""Next-token prediction on packed rows of text."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attractor.config import require_whole
from attractor.data.text import PackedRows


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    """``batch_size`` rows of ``length`` tokens a batch; ``seed`` of their order."""

    batch_size: int = 16
    length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, 1, "batch_size")
        require_whole(self, 2, "length")
        require_whole(self, 0, "seed")


class NextToken:
    """An :class:`attractor.train.Objective` for language models.

    The model is called with ``input_ids``, ``position_ids`` and ``labels``; its output has ``loss`` and, where something was
    solved, ``solution``, ``proposal`` and ``hidden``. It has ``training_flops(length, evaluations)`` and ``inspect(input_ids)``.

    Parameters
    ----------
    rows
        Where the tokens come from.
    config
        See there.
    peak_flops
        Of the device, per second; None leaves the share of it that is used out of the log.
    """

    def __init__(self, rows: PackedRows, config: NextTokenConfig, *, peak_flops: float | None = None) -> None:
        self._rows, self._config, self._peak = rows, config, peak_flops
        self._row = 0
        self._flops = 0.0
        self._since = (0, time.perf_counter())
        self._last: Tensor | None = None

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(model.parameters()).device
        tokens, positions = (
            t.to(device, non_blocking=True) for t in self._rows.batch(self._row, self._config.batch_size)
        )
        self._row += self._config.batch_size
        self._last = tokens[:1]
        output: Any = model(input_ids=tokens, position_ids=positions, labels=tokens)
        metrics = {}
        if (solution := output.solution) is not None:
            metrics = {
                "evaluations": solution.evaluations.float().mean(),
                "residual": solution.residual.mean(),
                "calls": torch.tensor(float(solution.outcome.calls)),
            }
            if output.proposal.shape == output.hidden.shape:
                moved = (output.hidden - output.proposal).detach().float().norm(dim=-1)
                metrics["moved"] = (moved / output.proposal.detach().float().norm(dim=-1).clamp_min(1e-12)).mean()
        return output.loss, metrics

    @torch.no_grad()
    def inspect(self, model: Any) -> dict[str, float]:
        tokens, begun = self._since
        done, now = self._row * self._config.length, time.perf_counter()
        self._since = done, now
        rate = (done - tokens) / (now - begun)
        figures = {"tokens": float(done), "tokens/s": rate}
        if self._last is not None:
            figures |= model.inspect(self._last)
        return figures

    def state_dict(self) -> dict[str, Tensor]:
        return {"row": torch.tensor(self._row)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._row = int(state["row"])
        self._since = self._row * self._config.length, time.perf_counter()
