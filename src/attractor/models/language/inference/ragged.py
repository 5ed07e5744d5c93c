"""Some tokens of each row, packed into a dense tensor and back."""

import torch
from torch import Tensor


class RaggedIndex:
    """M tokens of a batch (B, T), a different number in every row.

    Parameters
    ----------
    index
        (M,) int64, ascending: the tokens, counted through the flattened batch.
    length
        T.
    tile
        The width of the packed tensor is a multiple of this.

    Attributes
    ----------
    rows, columns
        (M,): where each token lies.
    used_rows
        (R,): the rows that have tokens, ascending.
    width
        N, at least the largest number of tokens of a row.
    """

    def __init__(self, index: Tensor, length: int, tile: int) -> None:
        self.rows, self.columns = index // length, index % length
        self.used_rows, self._row, counts = torch.unique_consecutive(self.rows, return_inverse=True, return_counts=True)
        self._place = torch.arange(len(index), device=index.device) - (counts.cumsum(0) - counts)[self._row]
        self.width = tile * -(-int(counts.max()) // tile)

    def pack(self, x: Tensor) -> Tensor:
        """Return (M, ...) as (R, N, ...): a row for each used row, with zeros after its tokens."""
        packed = x.new_zeros(len(self.used_rows), self.width, *x.shape[1:])
        packed[self._row, self._place] = x
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """Return (R, N, ...) as (M, ...)."""
        return packed[self._row, self._place]
