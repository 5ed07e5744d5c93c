"""Matrix products, and which of PyTorch's libraries makes them."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PROCESSOR: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of PyTorch do not tell
MKL_IS_SLOW = str(_PROCESSOR.get("cpu_name", "")).startswith("AMD") and bool(_PROCESSOR.get("avx512_f"))
IMAGES = 16  # of fewer, a single thread makes PyTorch's own convolution, which is MKL's product


class Product(nn.Linear):
    """``x @ weight.T`` of x (A, B, in), in float32 on AMD's processors at twice PyTorch's speed.

    PyTorch has MKL make products and oneDNN convolutions, and there MKL leaves half of every AVX-512 vector unused. So the product
    is written as the convolution that it also is. Sums are in another order.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not MKL_IS_SLOW or not x.is_cpu or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        few = len(x) < IMAGES and x.shape[:-1].numel() % (2 * IMAGES) == 0
        # Images of height 2, not 1: a compiler then cannot mistake how they lie in memory, and copies nothing.
        images = x.reshape(IMAGES, 2, -1, x.shape[-1]) if few else x[:, None]
        out = F.conv2d(images.permute(0, 3, 1, 2), self.weight[:, :, None, None]).permute(0, 2, 3, 1)
        return out.reshape(*x.shape[:-1], -1)


class SteadyProduct(Product):
    """The same in training; in evaluation PyTorch's own product, in which no row depends on how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else F.linear(x, self.weight)
