"""Rotary positions: channel pairs of queries and keys turn by angles that grow with the position (arXiv:2104.09864)."""

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]  # cosine and sine, each (..., head_dim)


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Return cosine and sine (..., head_dim) of the rotation angles, in float32.

    ``positions`` (..., A) are the coordinates of each token along A axes, 1 for text and 2 for grids; each axis turns
    an equal share of the channel pairs. Channel i turns with channel i + head_dim / 2. ``theta`` is the base of the
    frequencies.
    """
    pairs = head_dim // 2 // positions.shape[-1]
    frequency = theta ** -(torch.arange(pairs, device=positions.device, dtype=torch.float32) / pairs)
    return rotary_of(positions, frequency)


def rotary_of(positions: Tensor, frequency: Tensor, scale: float = 1.0) -> Rotary:
    """Return cosine and sine (..., head_dim), times ``scale``, for the frequencies of the channel pairs of an axis."""
    angle = (positions[..., None].float() * frequency).flatten(-2)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos() * scale, angle.sin() * scale


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Return ``x`` (..., head_dim) turned by the angles, in its own dtype."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)
