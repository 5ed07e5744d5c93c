"""The processes that train one model together: who this one is among them, and what they tell each other.

Started by ``torchrun``, which sets ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE`` and keeps a store for them; without it there is one
process, for which everything here costs nothing.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
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
    """This process among ``size``; ``rank`` counts from 0.

    Attributes
    ----------
    device
        Where this process computes.
    writers
        A process group of its own for whoever writes checkpoints beside the training, so that messages of the two never mix; None
        in one process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    writers: Any = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that talks, logs and names checkpoints."""
        return self.rank == 0

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Return every number added up over the ranks, which all call this with as many."""
        if self.size == 1:
            return list(numbers)
        wide = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(wide)
        return wide.tolist()

    def mean(self, numbers: Sequence[float]) -> list[float]:
        """Return every number's mean over the ranks."""
        return [number / self.size for number in self.total(numbers)]

    def on_main_process(self, action: Callable[[], None]) -> None:
        """Let rank 0 do something before the others go on; what it raises on purpose is raised everywhere."""
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


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Join the processes that ``torchrun`` has started, if it has, and leave them at the end."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield DistributedContext()
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine finds only {torch.cuda.device_count()} GPUs; start as many processes as GPUs."
            )
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    try:
        yield DistributedContext(rank=rank, size=size, device=device, writers=dist.new_group(backend="gloo"))
    finally:
        with Preemption():  # to processes that are left torchrun sends SIGTERM, and they have something to say
            dist.destroy_process_group()


@contextmanager
def report_lost_ranks(distributed: DistributedContext, whole: Callable[[], str]) -> Iterator[None]:
    """Turn the error of a rank that is gone into a sentence; ``whole()`` says which checkpoint is left."""
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no common exception
        silent = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
        if distributed.size == 1 or isinstance(error, AttractorError) or not silent:
            raise
        # Not where in gloo, nor its advice.
        why = re.sub(r"^\[\S*/\S*\] ", "", str(error)).splitlines()[0].split(". ")[0]
        raise LostRankError(
            f"rank {distributed.rank} of {distributed.size}: another process no longer answers ({why}); "
            f"look at its own output for the cause. {whole()}"
        ) from error


def should_report_error(error: AttractorError) -> bool:
    """Tell whether it is for this process to say why all of them end: the first that asks torchrun's store.

    That another one is gone is asked apart, since whoever finds so may be quicker than the other, which knows why.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    lost, start = isinstance(error, LostRankError), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=2))
        return store.add(f"attractor/{'lost' if lost else 'failed'}/{start}", 1) == 1
    except (RuntimeError, KeyError):  # whoever kept it is gone
        return lost or os.environ.get("RANK") == "0"
