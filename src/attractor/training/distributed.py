"""The processes of a distributed run: which one this is, and how they exchange numbers and errors.

``torchrun`` starts the processes; it sets ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE`` and keeps a key-value store for
them. Without it there is one process, and everything here is free.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from attractor.errors import AttractorError, ConfigError, LostRankError
from attractor.training.preemption import Preemption


@dataclass(frozen=True, kw_only=True)
class DistributedContext:
    """This process among ``size``. ``rank`` counts from 0.

    The threads that write checkpoints have a gloo group of their own, so that their messages do not mix with those of
    training. It is None for one process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    checkpoint_group: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the log and prints."""
        return self.rank == 0

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum over the ranks of each number. All ranks must call this, with equally many numbers."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return values.tolist()

    def mean(self, numbers: Sequence[float]) -> list[float]:
        """Return the mean over the ranks of each number. All ranks must call this, with equally many numbers."""
        return [number / self.size for number in self.total(numbers)]

    def on_main_process(self, action: Callable[[], None]) -> None:
        """Run ``action`` on rank 0 while the others wait. All ranks raise an :class:`AttractorError` of it."""
        error: list[AttractorError | None] = [None]
        if self.is_main:
            try:
                action()
            except AttractorError as raised:
                error = [raised]
        if self.size > 1:
            dist.broadcast_object_list(error, src=0, device=self.device)
        if error[0] is not None:
            raise error[0]

    def require_equal(self, settings: Mapping[str, Any]) -> None:
        """Raise a ConfigError on all ranks if they do not have the same settings. All ranks must call this."""
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, dict(_by_path(settings)), group=self.checkpoint_group)
        for rank, other in enumerate(found):
            for path in sorted({*found[0], *other}):
                if (first := found[0].get(path)) != (value := other.get(path)):
                    raise ConfigError(
                        f"rank {rank} has {path}={value} and rank 0 has {first}; start all processes with the same "
                        "settings and data."
                    )


def _by_path(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every value in nested settings."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _by_path(value, f"{prefix}{name}.")
        else:
            yield prefix + name, repr(value)


@contextmanager
def init_distributed(timeout_seconds: float = 300.0) -> Iterator[DistributedContext]:
    """Join the other processes if ``torchrun`` started this one, and leave them at the end.

    A process waits for at most ``timeout_seconds`` for another one; see :func:`report_lost_ranks`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield DistributedContext()
        return
    timeout = timedelta(seconds=timeout_seconds)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if local_rank >= (num_gpus := torch.cuda.device_count()):
            raise ConfigError(
                f"process {local_rank} of this machine has no GPU; start at most {num_gpus} processes on it."
            )
        torch.cuda.set_device(local_rank)
        device = torch.device("cuda", local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device, timeout=timeout)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo", timeout=timeout)
    try:
        group = dist.new_group(backend="gloo", timeout=timeout)
        yield DistributedContext(rank=rank, size=size, device=device, checkpoint_group=group)
    finally:
        # If another process has ended, torchrun sends SIGTERM to this one, which still has to report its error.
        with Preemption():
            dist.destroy_process_group()


@contextmanager
def report_lost_ranks(distributed: DistributedContext, last_checkpoint: Callable[[], str]) -> Iterator[None]:
    """Turn the error that a lost rank causes on this one into a :class:`LostRankError`.

    ``last_checkpoint()`` returns a sentence about the last checkpoint, which ends the message.
    """
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no exception class in common
        from_backend = isinstance(error, dist.DistError) or any(
            word in str(error) for word in ("gloo", "NCCL", "Connection", "pair closure")
        )
        if distributed.size == 1 or isinstance(error, AttractorError) or not from_backend:
            raise
        # Without the place in gloo's source and without its advice.
        reason = re.sub(r"^\[\S*/\S*\] ", "", str(error)).splitlines()[0].split(". ")[0]
        raise LostRankError(
            f"rank {distributed.rank} of {distributed.size}: another process no longer answers ({reason}); "
            f"read the output of that process for the cause. {last_checkpoint()}"
        ) from error


def should_report_error(error: AttractorError) -> bool:
    """Return whether this process prints the error that ends all of them: the first that asks torchrun's store does.

    Lost ranks are counted separately, because a process that finds one may ask before the lost process has reported the
    cause.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    is_lost, restart = isinstance(error, LostRankError), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=2))
        return store.add(f"attractor/{'lost' if is_lost else 'failed'}/{restart}", 1) == 1
    except (RuntimeError, KeyError):  # the process that kept the store has ended
        return is_lost or os.environ.get("RANK") == "0"
