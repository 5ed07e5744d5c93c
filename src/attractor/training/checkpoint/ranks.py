"""What all ranks do at the same time: all succeed, or all fail with the same sentence."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from attractor.errors import AttractorError, CheckpointError
from attractor.files import first_line, is_disk_full

T = TypeVar("T")
FULL = "the disk is full"
LOST = "another process no longer answers"


def rank_and_size(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Return this rank and the number of ranks. ``None`` means one process."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def run_on_all_ranks(group: dist.ProcessGroup | None, action: Callable[[], T]) -> list[T]:
    """Run ``action`` on every rank and return the results in rank order.

    Raises
    ------
    CheckpointError
        On all ranks, if the action fails on any of them.
    """
    result, failure, cause = None, None, None
    try:
        result = action()
    except Exception as error:
        failure, cause = short_reason(error), error
    outcomes: list[Any] = [(result, failure)]
    if group is not None:
        outcomes = outcomes * dist.get_world_size(group)
        dist.all_gather_object(outcomes, (result, failure), group=group)
    for _, failed in outcomes:
        if failed is not None:
            raise CheckpointError(failed) from cause
    return [each for each, _ in outcomes]


def short_reason(error: BaseException) -> str:
    """Return in a few words why something failed: a full disk or a lost rank if that is the root cause."""
    from torch.distributed.checkpoint.api import CheckpointException

    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if is_disk_full(error):
        return FULL
    # gloo: connection closed, or reset, by peer; or a rank that is stopped
    if any(words in str(error) for words in ("by peer", "Timed out waiting")):
        return LOST
    return str(error) if isinstance(error, AttractorError) else first_line(error)
