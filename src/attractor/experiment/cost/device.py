"""What a device can do at most, to say which share of it is used."""

import os
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Dense bf16 matrix products per second, from the makers' data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the most floating-point operations per second: known by the device's name in bf16, else measured.

    What is measured is the best of a few large matrix products, about a second's work on a processor.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for known, flops in PEAK_FLOPS.items():
        if known in name and dtype == torch.bfloat16:
            return flops
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        begun = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - begun)
    return 2.0 * size**3 / best


def peak_memory(work: Callable[[], Any], device: torch.device) -> int:
    """Return the most bytes of tensors at a time that ``work`` adds to what is there before; it runs slower than usual.

    On a processor every tensor's storage is counted from when an operation makes it until nobody holds it; on a GPU it is the
    allocator's own figure.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Ledger() as ledger:
        work()
    return ledger.peak


class _Ledger(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are still held."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._held: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        given = {
            storage._cdata for storage in _storages((args, kwargs))
        }  # views, and what is written in place, are not new
        for storage in _storages(out):
            if storage._cdata not in given:
                self._hold(storage)
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._held.discard(key)
        self._now -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def free_memory(device: torch.device) -> int:
    """Return the bytes that nobody uses, or half of what there is where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    named = os.sysconf_names
    page = os.sysconf("SC_PAGE_SIZE")
    if "SC_AVPHYS_PAGES" in named:
        return page * os.sysconf("SC_AVPHYS_PAGES")
    return page * os.sysconf("SC_PHYS_PAGES") // 2
