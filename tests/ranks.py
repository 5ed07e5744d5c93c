"""Processes that train together, forked from one that has imported the package: a new interpreter takes seconds."""

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch

PRELOADED = [
    "attractor.cli",
    "attractor.experiment.training",
    "attractor.experiment.language",
    "attractor.experiment.puzzles",
    "torch.distributed.fsdp",
]


def forkserver() -> Any:
    """Return the context from which such processes start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def run_ranks(worker: Callable[..., None], *arguments: Any, size: int) -> None:
    """Run ``worker(rank, *arguments)`` in ``size`` processes, and raise what one of them raised."""
    forkserver()
    torch.multiprocessing.start_processes(worker, arguments, nprocs=size, start_method="forkserver")
