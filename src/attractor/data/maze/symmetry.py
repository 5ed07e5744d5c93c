"""The 8 rotations and reflections of square mazes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from attractor.data.maze.rules import Grids
from attractor.errors import DataError


def augment(questions: Grids, answers: Grids, rng: np.random.Generator) -> tuple[Grids, Grids]:
    """Apply a random symmetry to each square maze (N, size, size), the same to question and answer."""
    pairs = np.stack([questions, answers], axis=1)  # (N, 2, H, W)
    symmetry = rng.integers(8, size=len(pairs))
    for k in range(8):
        pairs[symmetry == k] = _transform(pairs[symmetry == k], k)
    return pairs[:, 0], pairs[:, 1]


def fingerprints(questions: Grids) -> NDArray[np.uint64]:
    """Return a key (N,) for each square maze, equal for all its 8 symmetric copies.

    It is the least of 8 random projections modulo 2⁶⁴. Unrelated mazes share a key with a probability near 2⁻⁵⁸.
    """
    height, width = questions.shape[1:]
    # Raw bits, because NumPy guarantees that they never change.
    weights = np.random.PCG64(0).random_raw(height * width).reshape(height, width)
    # Transforming the weights instead of the mazes gives the same 8 numbers in another order.
    transformed = np.stack([_transform(weights, k).reshape(-1) for k in range(8)], axis=1)  # (H·W, 8)
    return (questions.reshape(len(questions), height * width).astype(np.uint64) @ transformed).min(axis=1)


def _transform(grids: NDArray[Any], k: int) -> NDArray[Any]:
    """Apply symmetry ``k`` of 8 to square grids (..., H, W): ``k % 4`` quarter turns, transposed from 4 up."""
    height, width = grids.shape[-2:]
    if height != width:
        raise DataError(f"Mazes of {height} x {width} cells cannot be turned; give square ones.")
    grids = np.rot90(grids, k % 4, axes=(-2, -1))
    return grids if k < 4 else grids.swapaxes(-2, -1)
