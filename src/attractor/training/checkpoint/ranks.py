"""What ranks do together: all succeed, or all fail in one sentence."""

import errno
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from attractor.errors import AttractorError, CheckpointError

T = TypeVar("T")
FULL = "the disk is full"
LOST = "another rank has ended"


def rank_and_world(group: dist.ProcessGroup | None) -> tuple[int, int]:
    """Return this rank and the number of ranks; ``None`` is one process alone."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def agree(group: dist.ProcessGroup | None, act: Callable[[], T]) -> list[T]:
    """Let every rank act and return the results in rank order. What fails on one rank fails on all of them."""
    result, failure, cause = None, None, None
    try:
        result = act()
    except Exception as error:
        failure, cause = reason(error), error
    every: list[Any] = [(result, failure)]
    if group is not None:
        every = every * dist.get_world_size(group)
        dist.all_gather_object(every, (result, failure), group=group)
    for _, failed in every:
        if failed is not None:
            raise CheckpointError(failed) from cause
    return [each for each, _ in every]


def reason(error: BaseException) -> str:
    """Return why something failed, in some words: what lies at its root rather than what was made of it."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    root: BaseException | None = error
    while root is not None:
        number = root.errno if isinstance(root, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(root):
            return FULL
        root = root.__cause__ or root.__context__
    if "by peer" in str(error):  # gloo: connection closed, or reset
        return LOST
    if isinstance(error, AttractorError):
        return str(error)
    return (str(error).splitlines() or [""])[0] or type(error).__name__
