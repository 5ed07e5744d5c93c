"""The one loop: steps or a wall-clock budget, a schedule, averaged weights, checkpoints, exact resume.

It knows an objective, which yields a loss a step, and a model, whose parameters it moves; nothing else.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attractor.config import require_positive, require_whole, suggestion
from attractor.errors import CheckpointError, ConfigError, NotFiniteError
from attractor.nn import compile_blocks
from attractor.optim import OptimizerConfig, trapezoid
from attractor.train.checkpoint import find_checkpoint, load_training, save_checkpoint, save_weights

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train.

    Attributes
    ----------
    num_steps, seconds
        The run ends at whichever is reached first; at least one is given. Evaluation and checkpoints count as time.
    warmup, decay
        Shares of the run for the rise and the fall of the learning rate, see :func:`attractor.optim.trapezoid`.
    ema
        Decay of the averaged weights, which are the ones that evaluation and inference use; 0 uses the last ones.
    accumulate
        Batches per optimiser step; their gradients are averaged.
    precision
        ``"fp32"``, or ``"bf16"`` for matrix products under autocast. Weights and solver states stay in float32.
    compile
        Whether the model's blocks are compiled, see :func:`attractor.nn.compile_blocks`; ``None``: on a GPU. It takes a minute or
        two and changes roundings, so a resumed run keeps it.
    max_skipped
        A step whose loss or gradient is not finite is skipped; after so many in a row the run stops.
    log_every, checkpoint_every
        In steps; ``checkpoint_every=0`` checkpoints only at the end.
    """

    num_steps: int | None = None
    seconds: float | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup: float = 0.02
    decay: float = 0.5
    ema: float = 0.995
    accumulate: int = 1
    precision: str = "fp32"
    compile: bool | None = None
    max_skipped: int = 20
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.num_steps is None and self.seconds is None:
            raise ConfigError("train: give num_steps or seconds, so that the run can end.")
        require_whole(self, 1, "log_every", "accumulate", *(["num_steps"] if self.num_steps is not None else []))
        require_whole(self, 0, "checkpoint_every", "seed", "max_skipped")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"TrainConfig(precision={self.precision!r}): {suggestion(self.precision, PRECISIONS)}")
        require_positive(self, *(["seconds"] if self.seconds is not None else []))
        if not 0 <= self.decay <= 1:
            raise ConfigError(f"TrainConfig(decay={self.decay!r}): the share must lie in [0, 1].")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"TrainConfig(warmup={self.warmup!r}): the share must lie in [0, 1).")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"TrainConfig(ema={self.ema!r}): the decay must lie in [0, 1).")


class Objective(Protocol):
    """What is minimised, and everything about it that a resumed run needs."""

    def step(self, model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the next batch, and detached scalars worth watching."""
        ...

    def inspect(self, model: nn.Module) -> dict[str, float]:
        """Return further figures for the log, which may cost a little: it is called every ``log_every`` steps."""
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


SaveModel = Callable[[nn.Module, Path], None]


def train(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    *,
    out: Path,
    describe: dict[str, Any],
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    pause: Callable[[], bool] = lambda: False,
    save_model: SaveModel = save_weights,
) -> nn.Module:
    """Train ``model`` in place and return the averaged model, in evaluation mode.

    Writes ``out/metrics.jsonl`` and ``out/step-*/``. ``describe`` goes into every checkpoint's ``run.json``, so that the
    checkpoint can be built again by whoever knows what it means; ``save_model`` writes the model for inference. With
    ``resume``, the newest checkpoint in ``out`` is continued: bitwise as if never interrupted when the run is bounded
    by steps. Only how long it runs and how often it logs and saves may differ from before. When ``pause()`` says so, after a
    step, it writes a checkpoint and leaves; nothing of the schedule changes.

    Raises
    ------
    NotFiniteError
        After ``max_skipped`` steps in a row whose loss or gradient was not finite. The last checkpoint stays.
    """
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None
    optimizers = config.optimizer.build(model)
    device = next(model.parameters()).device
    if config.compile or (config.compile is None and device.type == "cuda"):
        compile_blocks(model)
    step, spent, skipped, skipped_now = 0, 0.0, 0, 0
    torch.manual_seed(config.seed)
    if resume:
        step, spent, skipped = _restore(find_checkpoint(out), describe, model, averaged, optimizers, objective)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    full = [(group["lr"], group["weight_decay"]) for group in groups]
    out.mkdir(parents=True, exist_ok=True)
    if not resume:  # an older run's checkpoints and curves must not pass for this one's
        for old in [*out.glob("step-*"), *out.glob(".part-*"), *out.glob("tensorboard")]:
            shutil.rmtree(old)
    log = _open_log(out / "metrics.jsonl", step)
    begun = time.perf_counter() - spent
    model.train()

    def progress() -> float:
        by_steps = step / config.num_steps if config.num_steps else 0.0
        by_time = (time.perf_counter() - begun) / config.seconds if config.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    def save() -> None:
        scalars = {"step": step, "seconds": time.perf_counter() - begun, "skipped": skipped}
        tensors = _training_tensors(model, averaged, optimizers, objective)
        module = averaged.module if averaged else model
        save_checkpoint(out, step, describe, lambda folder: save_model(module, folder), tensors, scalars)

    with log:
        while (now := progress()) < 1:
            factor = trapezoid(now, warmup=config.warmup, decay=config.decay)
            decay = 1 + now * (config.optimizer.final_decay - 1)
            for group, (rate, weight_decay) in zip(groups, full, strict=True):
                group["lr"], group["weight_decay"] = rate * factor, weight_decay * decay
            loss = torch.zeros((), device=device)
            metrics: dict[str, Tensor] = {}
            for _ in range(config.accumulate):
                with torch.autocast(device.type, PRECISIONS[config.precision], enabled=config.precision != "fp32"):
                    part, metrics = objective.step(model)
                (part / config.accumulate).backward()
                loss += part.detach() / config.accumulate
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
            if bool((loss + norm).isfinite()):
                skipped_now = 0
                for optimizer in optimizers:
                    optimizer.step()
                if averaged:
                    averaged.update_parameters(model)
            else:
                skipped, skipped_now = skipped + 1, skipped_now + 1
                if skipped_now > config.max_skipped:
                    raise NotFiniteError(
                        f"step {step}: the loss or its gradient was not finite {skipped_now} times in a row; lower "
                        "train.optimizer.lr (or muon_lr), or train in fp32. The last checkpoint is whole."
                    )
            model.zero_grad(set_to_none=True)
            step += 1
            done = progress()
            if step % config.log_every == 0 or done >= 1:
                values = {k: float(v) for k, v in {"loss": loss, "gradient": norm, **metrics}.items()}
                if not skipped_now:
                    values |= objective.inspect(model)
                values |= {"skipped": float(skipped)} if skipped else {}
                lr = config.optimizer.lr * factor
                report = Report(step=step, seconds=time.perf_counter() - begun, progress=done, lr=lr, metrics=values)
                finite = {k: v if math.isfinite(v) else None for k, v in values.items()}  # JSON knows no infinity
                log.write(json.dumps({"step": step, "seconds": round(report.seconds, 3), "lr": lr, **finite}) + "\n")
                for callback in callbacks:
                    callback(report)
            # Not amid steps that are skipped: good checkpoints would make room for one that cannot go on.
            if config.checkpoint_every and step % config.checkpoint_every == 0 and done < 1 and not skipped_now:
                save()
            if done < 1 and pause():
                break
    save()
    return (averaged.module if averaged else model).eval()


def _training_tensors(
    model: nn.Module,
    averaged: AveragedModel | None,
    optimizers: Sequence[torch.optim.Optimizer],
    objective: Objective,
) -> dict[str, Tensor]:
    tensors = {f"weights.{k}": v for k, v in model.state_dict().items()}
    if averaged:
        tensors |= {f"averaged.{k}": v for k, v in averaged.module.state_dict().items()}
        tensors |= {"count": averaged.n_averaged}
    for which, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{which}.{index}.{k}": v for k, v in state.items()}
    tensors |= {f"objective.{k}": v for k, v in objective.state_dict().items()}
    tensors |= {"random": torch.get_rng_state()}
    return tensors | ({"random_cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _restore(
    checkpoint: Path,
    describe: dict[str, Any],
    model: nn.Module,
    averaged: AveragedModel | None,
    optimizers: Sequence[torch.optim.Optimizer],
    objective: Objective,
) -> tuple[int, float, int]:
    saved, tensors, scalars = load_training(checkpoint)
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
        if averaged:
            averaged.module.load_state_dict(group("averaged."))
            averaged.n_averaged.copy_(tensors["count"])
        for which, optimizer in enumerate(optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for name, value in group(f"optimizer.{which}.").items():
                index, key = name.split(".")
                moments.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        objective.load_state_dict(group("objective."))
        torch.set_rng_state(tensors["random"])
        if torch.cuda.is_available() and "random_cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random_cuda"])
        return int(scalars["step"]), float(scalars["seconds"]), int(scalars["skipped"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}: incomplete, cannot be resumed ({error}).") from error


def _fixed(settings: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Flatten nested settings to ``{path: value}``, without those that a resumed run may change."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _fixed(value, f"{path}{name}.")
        elif name not in ("num_steps", "seconds", "log_every", "checkpoint_every") and path != "environment.":
            flat[path + name] = value
    return flat


def _open_log(file: Path, step: int) -> TextIO:
    """Open the log for appending line by line, without what was logged after ``step`` and will be logged again."""
    kept = []
    for line in file.read_text().splitlines(keepends=True) if step and file.exists() else []:
        try:
            before = json.loads(line)["step"] <= step
        except json.JSONDecodeError:  # torn when the machine stopped
            continue
        kept += [line] if before else []
    part = file.with_name(f".{file.name}.part")
    part.write_text("".join(kept))
    os.replace(part, file)
    return file.open("a", buffering=1)
