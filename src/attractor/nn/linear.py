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
        images = x if len(x) >= IMAGES or x.shape[:-1].numel() % IMAGES else x.reshape(IMAGES, -1, x.shape[-1])
        out = F.conv2d(images.transpose(1, 2)[:, :, None], self.weight[:, :, None, None])[:, :, 0].transpose(1, 2)
        return out.reshape(*x.shape[:-1], -1)


class SteadyProduct(Product):
    """The same in training; in evaluation PyTorch's own product, in which no row depends on how many there are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else F.linear(x, self.weight)
