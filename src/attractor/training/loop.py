"""The one loop, on one process or many: steps or a wall-clock budget, a schedule, averaged weights, guards, checkpoints, resume.

It knows an objective, which yields a loss a step, and a model, whose parameters it moves; nothing else.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attractor.errors import CheckpointError, ConfigError, DivergedError
from attractor.nn import compile_blocks
from attractor.optim import trapezoid
from attractor.solve import synchronized
from attractor.training.checkpoint import Checkpoints, find_checkpoint, save_weights
from attractor.training.config import PRECISIONS, Objective, TrainConfig
from attractor.training.distributed import DistributedContext, report_lost_ranks
from attractor.training.guard import Guard, GuardConfig
from attractor.training.log import Callback, Log, NullLog, Report
from attractor.training.parallel import Unit, clip, gradient_sync
from attractor.training.state import TrainingState


def train(
    model: nn.Module,
    objective: Objective,
    config: TrainConfig,
    *,
    out: Path,
    metadata: dict[str, Any],
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    should_pause: Callable[[], bool] = lambda: False,
    save_model: Callable[[dict[str, Tensor], Path], None] = save_weights,
    units: Sequence[Unit] = (),
    distributed: DistributedContext | None = None,
) -> nn.Module:
    """Train ``model`` in place and return the averaged model, in evaluation mode.

    Writes ``out/metrics.jsonl``, ``out/events.jsonl`` and ``out/step-*/``. ``describe`` goes into every checkpoint's ``run.json``,
    so that the checkpoint can be built again by whoever knows what it means; ``save_model`` writes the model for inference. With
    ``resume``, the newest checkpoint in ``out`` is continued: bitwise as if never interrupted when the run is bounded
    by steps and the processes are as many as before. Only how long it runs, how often it logs and saves, and how it is spread over
    processes may differ. When ``pause()`` says so on any rank, after a step, it writes a checkpoint and leaves; nothing of the
    schedule changes.

    Parameters
    ----------
    units
        Which modules have their weights gathered as one under ``parallel="fsdp"``; all others have theirs with the model's root.
    world
        The processes that train together, see :func:`attractor.training.joined`; all call this with the same arguments.

    Raises
    ------
    DivergedError
        As ``config.guard`` says. The last checkpoint stays.
    LostRankError
        When another process is gone.
    """
    distributed = distributed or DistributedContext(device=next(model.parameters()).device)
    if config.precision == "bf16" and distributed.device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(f"{torch.cuda.get_device_name()} has no bf16; train in fp32 (train.precision=fp32).")
    if config.compile or (config.compile is None and distributed.device.type == "cuda"):
        compile_blocks(model)
    torch.manual_seed(config.seed)
    guard = Guard(config.guard)
    state = TrainingState(model, objective, guard, config, units, distributed)
    if resume:
        state.restore(find_checkpoint(out), metadata)
    distributed.on_main_process(lambda: _prepare(out, resume=resume))
    begun = time.perf_counter() - state.seconds
    model.train()

    def progress() -> float:
        by_steps = state.step / config.num_steps if config.num_steps else 0.0
        by_time = state.seconds / config.seconds if config.seconds else 0.0
        return min(1.0, max(by_steps, by_time))

    with (
        report_lost_ranks(distributed, lambda: _left(out)),
        Log(out, state.step, callbacks) if distributed.is_main else NullLog() as log,
        Checkpoints(
            out,
            metadata=metadata,
            save_model=save_model,
            max_checkpoints=config.max_checkpoints,
            group=distributed.writers,
        ) as checkpoints,
    ):
        while (now := progress()) < 1:
            factor = state.rate * trapezoid(
                now, warmup_fraction=config.warmup_fraction, cooldown_fraction=config.cooldown_fraction
            )
            state.schedule(factor, 1 + now * (config.optimizer.final_weight_decay - 1))
            total, metrics = _gradients(state.forward, objective, config, distributed)
            loss, norm = torch.stack([total, clip(model, config.optimizer.clip)]).tolist()  # waits for the device, once
            state.seconds = time.perf_counter() - begun
            is_last = state.step + 1 == config.num_steps or progress() == 1
            # The one exchange of a step: all ranks judge it alike, leave together, and go by one clock.
            loss, norm, asked, state.seconds = distributed.total(
                [
                    loss / distributed.size,
                    norm / distributed.size,
                    float(not is_last and should_pause()),
                    distributed.is_main * state.seconds,
                ]
            )
            trouble = guard.judge(loss, norm)
            if trouble is None:
                state.move()
            else:
                state.skip_step()
                log.tell(state.step + 1, f"{trouble}; the step is left out")
            model.zero_grad(set_to_none=True)
            state.step += 1
            done, drift = progress(), None
            if state.step % config.log_every == 0 or done >= 1:
                figures = {name: float(value) for name, value in metrics.items()}
                figures |= objective.diagnostics(state.forward) if trouble is None else {}
                figures = {
                    "loss": loss,
                    "gradient": norm,
                    **dict(zip(figures, distributed.mean([*figures.values()]), strict=True)),
                }
                figures |= {"skipped": float(state.skipped)} if state.skipped else {}
                if (drift := guard.look(figures)) and config.guard.policy == "skip":
                    log.tell(state.step, drift)
                lr = config.optimizer.lr * factor
                log.report(Report(step=state.step, seconds=state.seconds, progress=done, lr=lr, metrics=figures))
            if verdict := _verdict(state, trouble, drift, config.guard):
                checkpoints.wait()
                if end := _end(state, out, verdict, config.guard):
                    log.tell(state.step, end)
                    raise DivergedError(f"step {state.step}: {end}")
                back = find_checkpoint(out)
                state.roll_back(back, config.guard.rollback_rate)
                log.tell(
                    state.step,
                    f"{verdict}; back to the weights of {back.name}, on with new data at {state.rate:g} times the learning rate",
                )
            # Not amid trouble: good checkpoints would make room for one that cannot go on.
            elif (
                config.checkpoint_every
                and state.step % config.checkpoint_every == 0
                and done < 1
                and not state.in_trouble
            ):
                state.save(checkpoints)
            if done < 1 and asked:
                break
        state.save(checkpoints)
    return state.result().eval()


def _gradients(
    model: nn.Module, objective: Objective, config: TrainConfig, distributed: DistributedContext
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add up the gradients of one step's batches, and return their mean loss and the last one's metrics."""
    loss, metrics = torch.zeros((), device=distributed.device), dict[str, Tensor]()
    for index in range(config.accumulate):
        with gradient_sync(model, now=index == config.accumulate - 1):
            mixed = config.precision != "fp32"
            with (
                torch.autocast(distributed.device.type, PRECISIONS[config.precision], enabled=mixed),
                synchronized(distributed.total) if distributed.size > 1 else nullcontext(),
            ):
                part, metrics = objective.step(model)
            (part / config.accumulate).backward()
        loss += part.detach() / config.accumulate
    return loss, metrics


def _verdict(state: TrainingState, trouble: str | None, drift: str | None, guard: GuardConfig) -> str | None:
    """Return why a run cannot go on as it is; None where it can."""
    if trouble is not None and (guard.policy == "stop" or state.num_bad > guard.max_skipped):
        return f"{trouble}, {state.num_bad} times in a row"
    return drift if guard.policy != "skip" else None


def _end(state: TrainingState, out: Path, verdict: str, guard: GuardConfig) -> str | None:
    """Return why a run ends that cannot go on as it is; None where it goes back to a checkpoint instead."""
    if guard.policy != "rollback":
        return (
            f"{verdict}; begin anew with a lower train.optimizer.lr (or muon_lr) or in fp32, or resume with "
            f"train.guard.policy=rollback. {_left(out)}"
        )
    if state.rollbacks == guard.max_rollbacks:
        return f"{verdict}, after {state.rollbacks} rollbacks. {_left(out)}"
    return None if any(out.glob("step-*")) else f"{verdict}, before there was a checkpoint to go back to."


def _prepare(out: Path, *, resume: bool) -> None:
    """Make the folder ready: an older run's checkpoints and curves must not pass for this one's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in [] if resume else [*out.glob("step-*"), *out.glob("tensorboard")]:
            shutil.rmtree(old)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); choose another folder.") from error


def _left(out: Path) -> str:
    """Say what is left of a run that ends."""
    try:
        return f"The last checkpoint, {find_checkpoint(out)}, is whole."
    except CheckpointError:
        return "There is no checkpoint."
