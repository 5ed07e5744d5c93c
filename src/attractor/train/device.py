"""What a device can do at most, to say which share of it is used."""

import time

import torch

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
