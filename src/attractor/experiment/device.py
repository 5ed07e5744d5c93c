"""Limits of a device: peak operations per second and memory; and its threads."""

import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SMALL = 1_000_000  # weights of a model that gains little by threads
# Operations per second of dense bf16 matrix products, from the vendors' data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak floating-point operations per second: in bf16 of known GPUs from ``PEAK_FLOPS``, otherwise measured.

    The measurement takes the fastest of a few large matrix products, about a second on a CPU.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for known, flops in PEAK_FLOPS.items():
        if known in name and dtype == torch.bfloat16:
            return flops
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        fastest = min(fastest, time.perf_counter() - start)
    return 2.0 * size**3 / fastest


def peak_memory(work: Callable[[], Any], device: torch.device) -> int:
    """Return the peak bytes of the tensors that ``work`` allocates.

    On a GPU it is the allocator's number. On a CPU, where ``work`` runs more slowly, the storage of every tensor is
    counted from the operation that creates it until it is freed.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _StorageTracker() as tracker:
        work()
    return tracker.peak


class _StorageTracker(TorchDispatchMode):
    """Counts the bytes of storages that operations created and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._current = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        inputs = {storage._cdata for storage in _storages((args, kwargs))}  # of views and in-place operations
        for storage in _storages(out):
            if storage._cdata not in inputs:
                self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self._current += size
            self.peak = max(self.peak, self._current)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._current -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def free_memory(device: torch.device) -> int:
    """Return the bytes of free memory, or half of the total where the operating system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    named = os.sysconf_names
    page = os.sysconf("SC_PAGE_SIZE")
    if "SC_AVPHYS_PAGES" in named:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    return page * os.sysconf("SC_PHYS_PAGES") // 2


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread in this block, in the whole process.

    Threads gain little where a network and its batch are small; on a busy machine they wait for each other at every
    operation.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread_if_small(model: nn.Module) -> AbstractContextManager[None]:
    """:func:`one_thread` for a model of fewer weights than ``SMALL``, otherwise nothing."""
    return one_thread() if sum(weight.numel() for weight in model.parameters()) < SMALL else nullcontext()
