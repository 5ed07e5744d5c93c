"""The training loop, on one process or many, bounded by steps or by time.

It knows an objective, which returns a loss at each step, and a model, whose parameters it trains; nothing else. A step
computes gradients, exchanges numbers with the other ranks, asks the guard, updates or skips, logs, writes checkpoints,
and may end the run.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from attractor.config import to_dict
from attractor.errors import CheckpointError, ConfigError, DivergedError
from attractor.files import made_folder, reported_write_errors
from attractor.files.lock import LOCK, owner_lock
from attractor.files.manifest import CHECKSUMS
from attractor.nn import compile_blocks
from attractor.optim import freeze
from attractor.solve import synchronized
from attractor.training.checkpoint import Checkpoints, checkpoints_in, find_checkpoint, save_weights
from attractor.training.config import PRECISIONS, Objective, TrainConfig
from attractor.training.distributed import DistributedContext, report_lost_ranks
from attractor.training.guard import Action, Decision, Guard
from attractor.training.log import Callback, Log, NullLog, Report
from attractor.training.parallel import Unit, clip_gradients, gradient_sync, reshard
from attractor.training.state import TrainingState

EVALUATION_SHARE = 0.05  # of the run's time, for held-out examples; the last report has them in any case


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

    Writes ``out/metrics.jsonl``, ``out/events.jsonl`` and ``out/step-*/``. All processes must use the same arguments.

    Parameters
    ----------
    metadata
        Plain data for the ``run.json`` of every checkpoint, from which the model can be built again.
    resume
        Continue the newest checkpoint in ``out``. With the same number of steps and processes, the result is bitwise that
        of an uninterrupted run. Only the settings in ``state.MAY_DIFFER`` may differ.
    should_pause
        Called after every step. If it returns True on any rank, all write a checkpoint and return. The schedule stays.
    save_model
        Writes weights for inference into a folder.
    units
        Modules whose weights are gathered together under ``parallel="fsdp"``; all others are gathered with the root.

    Raises
    ------
    DivergedError
        See ``config.guard``. The last checkpoint stays.
    LostRankError
        If another process has ended.
    """
    distributed = distributed or DistributedContext(device=next(model.parameters()).device)
    settings = {name: value for name, value in metadata.items() if name != "environment"}
    distributed.require_equal({**settings, "train": to_dict(config), "resume": resume})
    _prepare_model(model, config, distributed.device)
    torch.manual_seed(config.seed)
    guard = Guard(config.guard)
    state = TrainingState(model, objective, guard, config, units, distributed)
    with _owned_folder(out, distributed):
        if resume:
            state.restore(find_checkpoint(out), metadata)
        else:
            distributed.on_main_process(lambda: _remove_earlier_run(out))
        start_time = time.perf_counter() - state.seconds
        model.train()
        with (
            report_lost_ranks(distributed, lambda: _last_checkpoint(out)),
            Log(out, state.step, callbacks) if distributed.is_main else NullLog() as log,
            Checkpoints(out, metadata, save_model, config.max_checkpoints, distributed.checkpoint_group) as checkpoints,
        ):
            run = _Run(objective, config, out, distributed, guard, state, log, checkpoints, start_time)
            run.until_end(should_pause)
            state.save(checkpoints)
    return state.trained_model().eval()


@dataclass
class _Run:
    """The loop of :func:`train`, and the objects that its steps share."""

    objective: Objective
    config: TrainConfig
    out: Path
    distributed: DistributedContext
    guard: Guard
    state: TrainingState
    log: Log | NullLog
    checkpoints: Checkpoints
    start_time: float
    next_evaluation: float = 0.0  # in seconds of training time

    def until_end(self, should_pause: Callable[[], bool]) -> None:
        """Train until the end of the run, a pause or divergence."""
        state, guard, log = self.state, self.guard, self.log
        while state.progress < 1:
            lr = state.apply_schedule()
            mean_loss, metrics = self._compute_gradients()
            loss, grad_norm, pause = self._exchange(mean_loss, should_pause)
            decision = guard.check_step(loss, grad_norm)
            if decision.action is Action.SKIP:
                log.event(state.step + 1, f"{decision.reason}; the step is skipped")
            else:
                state.optimizer_step()
            state.model.zero_grad(set_to_none=True)
            state.step += 1
            report = None
            if state.step % self.config.log_every == 0 or state.progress >= 1:
                report = self._report({"loss": loss, "grad_norm": grad_norm}, metrics, lr, decision)
            decision = guard.check_run(report.metrics if report else {})
            if decision.action is Action.WARN:
                log.event(state.step, decision.reason)
            if report:
                log.report(report)
            if decision.action is Action.STOP:
                self._stop(decision.reason)
            elif decision.action is Action.ROLLBACK:
                self._roll_back(decision.reason)
            elif self._checkpoint_is_needed():
                state.save(self.checkpoints)
            if pause and state.progress < 1:
                return
        if guard.counters.skipped >= state.step > 0 and not guard.counters.rollbacks:
            self._stop(
                "every step was skipped, because its loss or gradients were not finite; lower the learning rate."
            )

    def _compute_gradients(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the gradients of one step's batches. Return their mean loss and the metrics of the last batch."""
        config, model, device = self.config, self.state.forward, self.distributed.device
        mean_loss, metrics = torch.zeros((), device=device), dict[str, Tensor]()
        for index in range(config.accumulate):
            with gradient_sync(model, now=index == config.accumulate - 1):
                with (
                    torch.autocast(device.type, PRECISIONS[config.precision], enabled=config.precision != "fp32"),
                    synchronized(self.distributed.total) if self.distributed.size > 1 else nullcontext(),
                ):
                    loss, metrics = self.objective.step(model, self.state.progress)
                (loss / config.accumulate).backward()
            mean_loss += loss.detach() / config.accumulate
        return mean_loss, metrics

    def _exchange(self, loss: Tensor, should_pause: Callable[[], bool]) -> tuple[float, float, bool]:
        """Clip the gradients. Return the mean loss and gradient norm of the ranks, and whether any rank wants to pause.

        This is the one exchange of a step: all ranks then decide the same and use the clock of rank 0.
        """
        state, size, is_main = self.state, self.distributed.size, self.distributed.is_main
        grad_norm = clip_gradients(state.model, self.config.optimizer.clip)
        local_loss, local_norm = torch.stack([loss, grad_norm]).tolist()  # the one host synchronisation of a step
        state.seconds = time.perf_counter() - self.start_time
        is_last = state.step + 1 == self.config.num_steps or state.progress == 1
        pause = float(not is_last and should_pause())
        numbers = [local_loss / size, local_norm / size, pause, is_main * state.seconds]
        mean_loss, mean_norm, num_pauses, state.seconds = self.distributed.total(numbers)
        return mean_loss, mean_norm, num_pauses > 0

    def _report(self, basic: dict[str, float], metrics: dict[str, Tensor], lr: float, decision: Decision) -> Report:
        """Return the metrics of a step, averaged over the ranks."""
        state, skipped = self.state, self.guard.counters.skipped
        local = {name: float(value) for name, value in metrics.items()}
        if decision.action is not Action.SKIP:
            local |= self.objective.diagnostics(state.forward)
        local = {**self._evaluate(), **local}
        means = dict(zip(local, self.distributed.mean([*local.values()]), strict=True))
        extra = {"skipped": float(skipped)} if skipped else {}
        return Report(
            step=state.step, seconds=state.seconds, progress=state.progress, lr=lr, metrics={**basic, **means, **extra}
        )

    def _evaluate(self) -> dict[str, float]:
        """Return metrics of held-out examples, of the last weights and of their average, if it is time for them."""
        state = self.state
        if state.seconds < self.next_evaluation and state.progress < 1:
            return {}
        start, metrics = time.perf_counter(), self.objective.evaluate(state.model)
        reshard(state.model)
        if metrics and self.config.ema_decay:
            averaged = self.objective.evaluate(state.trained_model())
            reshard(state.trained_model())
            metrics = {n: v for name in metrics for n, v in ((name, metrics[name]), (f"{name}_ema", averaged[name]))}
        [seconds] = self.distributed.mean([time.perf_counter() - start])  # all ranks evaluate again at the same step
        self.next_evaluation = state.seconds + seconds / EVALUATION_SHARE
        return metrics

    def _checkpoint_is_needed(self) -> bool:
        # Not while in trouble: bad checkpoints would replace the good ones that a rollback needs.
        every, state = self.config.checkpoint_every, self.state
        return every > 0 and state.step % every == 0 and state.progress < 1 and not self.guard.in_trouble

    def _stop(self, reason: str) -> NoReturn:
        """Raise :class:`DivergedError`."""
        self.checkpoints.wait()
        message = f"{reason} {_last_checkpoint(self.out)}"
        self.log.event(self.state.step, message)
        raise DivergedError(f"step {self.state.step}: {message}")

    def _roll_back(self, reason: str) -> None:
        """Restore the last checkpoint, or stop if there is none."""
        self.checkpoints.wait()
        if not checkpoints_in(self.out):
            self._stop(f"{reason}, and a rollback needs a checkpoint.")
        checkpoint = find_checkpoint(self.out)
        self.state.roll_back(checkpoint)
        self.log.event(
            self.state.step,
            f"{reason}; rolled back to the weights of {checkpoint.name}, continuing with new data "
            f"at {self.guard.counters.lr_factor:g} times the learning rate",
        )


def _prepare_model(model: nn.Module, config: TrainConfig, device: torch.device) -> None:
    """Check that the device supports the precision; freeze parameters and compile blocks as the settings say."""
    on_gpu = device.type == "cuda"
    if config.precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported(False):
        raise ConfigError(f"{torch.cuda.get_device_name()} has no bf16; train in fp32 (train.precision=fp32).")
    freeze(model, config.freeze)
    if config.compile or (config.compile is None and on_gpu):
        compile_blocks(model)


@contextmanager
def _owned_folder(out: Path, distributed: DistributedContext) -> Iterator[None]:
    """Create the run's folder; no other run can write into it during this block."""
    with ExitStack() as stack:

        def own() -> None:
            with reported_write_errors(out, "choose another folder"):
                stack.enter_context(made_folder(out))
                stack.enter_context(owner_lock(out / LOCK))

        distributed.on_main_process(own)
        yield


def _remove_earlier_run(out: Path) -> None:
    """Remove the checkpoints and the curves of an earlier run, and nothing else."""
    with reported_write_errors(out, "choose another folder"):
        found = checkpoints_in(out)
        for path in found:
            if path.is_symlink() or not any((path / name).is_file() for name in ("run.json", CHECKSUMS)):
                raise ConfigError(f"{path}: is no checkpoint of an earlier run; remove it, or choose another folder.")
        for path in found:
            shutil.rmtree(path)
        for path in (out / "tensorboard").glob("events.out.tfevents.*"):
            path.unlink()


def _last_checkpoint(out: Path) -> str:
    """Return a sentence about the last checkpoint."""
    try:
        return f"The last checkpoint, {find_checkpoint(out)}, is complete."
    except CheckpointError:
        return "There is no checkpoint."
