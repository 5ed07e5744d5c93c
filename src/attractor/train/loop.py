"""The one loop: steps or a wall-clock budget, a schedule, averaged weights, checkpoints, exact resume.

It knows an objective, which yields a loss a step, and a model, whose parameters it moves; nothing else.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attractor.config import require_positive, require_whole
from attractor.errors import CheckpointError, ConfigError
from attractor.optim import OptimizerConfig, trapezoid
from attractor.train.checkpoint import find_checkpoint, load_training, save_checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train.

    Attributes
    ----------
    num_steps, seconds
        The run ends at whichever is reached first; at least one is given. Evaluation and checkpoints count as time.
    warmup, decay
        Shares of the run, see :func:`attractor.optim.trapezoid`.
    ema
        Decay of the averaged weights, which are the ones that evaluation and inference use.
    log_every, checkpoint_every
        In steps; ``checkpoint_every=0`` checkpoints only at the end.
    """

    num_steps: int | None = None
    seconds: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup: float = 0.02
    decay: float = 0.5
    ema: float = 0.995
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.num_steps is None and self.seconds is None:
            raise ConfigError("train: give num_steps or seconds, so that the run can end.")
        require_whole(self, 1, "log_every", *(["num_steps"] if self.num_steps is not None else []))
        require_whole(self, 0, "checkpoint_every", "seed")
        require_positive(self, "warmup", "decay", *(["seconds"] if self.seconds is not None else []))
        if not 0 <= self.ema < 1:
            raise ConfigError(f"TrainConfig(ema={self.ema!r}): the decay must lie in [0, 1).")


class Objective(Protocol):
    """What is minimised, and everything about it that a resumed run needs."""

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the next batch, and detached scalars worth watching."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Report:
    """One line of the log. ``progress`` in [0, 1]; ``seconds`` since the start of training, over all resumed parts."""

    step: int
    seconds: float
    progress: float
    lr: float
    metrics: dict[str, float]


class Callback(Protocol):
    """Something that watches: called every ``log_every`` steps, and once at the end."""

    def __call__(self, report: Report) -> None: ...


def train(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    *,
    out: Path,
    describe: dict[str, Any],
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
) -> nn.Module:
    """Train ``model`` in place and return the averaged model, in evaluation mode.

    Writes ``out/metrics.jsonl`` and ``out/step-*/``. ``describe`` goes into every checkpoint's ``config.json``, so that the
    checkpoint can be built again by whoever knows what it means. With ``resume``, the newest checkpoint in ``out``
    is continued: bitwise as if never interrupted when the run is bounded by steps. Only how long it runs and how often
    it logs and saves may differ from before.
    """
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
    optimizer = config.optimizer.build(model)
    step, spent = 0, 0.0
    torch.manual_seed(config.seed)
    if resume:
        step, spent = _restore(find_checkpoint(out), describe, model, averaged, optimizer, objective)
    out.mkdir(parents=True, exist_ok=True)
    log = _open_log(out / "metrics.jsonl", step)
    begun = time.perf_counter() - spent
    model.train()

    def progress() -> float:
        by_steps = step / config.num_steps if config.num_steps else 0.0
        by_time = (time.perf_counter() - begun) / config.seconds if config.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def save() -> None:
        scalars = {"step": step, "seconds": time.perf_counter() - begun}
        tensors = _training_tensors(model, averaged, optimizer, objective)
        save_checkpoint(out, step, describe, averaged.module.state_dict(), tensors, scalars)

    with log:
        while (now := progress()) < 1:
            lr = config.optimizer.lr * trapezoid(now, warmup=config.warmup, decay=config.decay)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, metrics = objective.step(model)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            averaged.update_parameters(model)
            step += 1
            done = progress()
            if step % config.log_every == 0 or done >= 1:
                values = {k: float(v) for k, v in {"loss": loss.detach(), "gradient": norm, **metrics}.items()}
                report = Report(step=step, seconds=time.perf_counter() - begun, progress=done, lr=lr, metrics=values)
                log.write(json.dumps({"step": step, "seconds": round(report.seconds, 3), "lr": lr, **values}) + "\n")
                for callback in callbacks:
                    callback(report)
            if config.checkpoint_every and step % config.checkpoint_every == 0 and done < 1:
                log.flush()
                save()
    save()
    return averaged.module.eval()


def _training_tensors(
    model: nn.Module, averaged: AveragedModel, optimizer: torch.optim.Optimizer, objective: Objective
) -> dict[str, Tensor]:
    tensors = {f"weights.{k}": v for k, v in model.state_dict().items()}
    tensors |= {"averaged.count": averaged.n_averaged}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    tensors |= {f"objective.{k}": v for k, v in objective.state_dict().items()}
    return tensors | {"random": torch.get_rng_state()}


def _restore(
    checkpoint: Path,
    describe: dict[str, Any],
    model: nn.Module,
    averaged: AveragedModel,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
) -> tuple[int, float]:
    saved, average, tensors, scalars = load_training(checkpoint)
    before, now = _fixed(saved), _fixed(json.loads(json.dumps(describe)))
    if changed := sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k)):
        raise CheckpointError(
            f"{checkpoint}: {', '.join(changed)} differs from this run's; "
            "resume with the same settings, or train into another folder."
        )

    def group(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        model.load_state_dict(group("weights."))
        averaged.module.load_state_dict(average)
        averaged.n_averaged.copy_(tensors["averaged.count"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in group("optimizer.").items():
            index, key = name.split(".")
            moments.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        objective.load_state_dict(group("objective."))
        torch.set_rng_state(tensors["random"])
        return int(scalars["step"]), float(scalars["seconds"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}: incomplete, cannot be resumed ({error}).") from error


def _fixed(settings: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten nested settings to ``{path: value}``, without those that a resumed run may change."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _fixed(value, f"{path}{name}.")
        elif name not in ("num_steps", "seconds", "log_every", "checkpoint_every"):
            flat[path + name] = value
    return flat


def _open_log(file: Path, step: int) -> TextIO:
    """Open the log for appending, without the lines of steps after ``step`` that will be made again."""
    old = file.read_text().splitlines(keepends=True) if step and file.exists() else []
    file.write_text("".join(line for line in old if json.loads(line)["step"] <= step))
    return file.open("a")
