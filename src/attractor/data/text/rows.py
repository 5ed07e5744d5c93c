"""Rows for training: the whole sequence cut to one length and shuffled, every row exactly once an epoch."""

import numpy as np
import torch
from torch import Tensor

from attractor.data.text.shards import Shards
from attractor.errors import DataError


class PackedRows:
    """Row ``n`` of a run is fixed by ``seed`` alone, so that a run resumes at any row and any batch size.

    Parameters
    ----------
    shards
        See there.
    length
        Tokens a row.
    seed
        Of the shuffling, which differs from epoch to epoch.
    """

    def __init__(self, shards: Shards, length: int, seed: int = 0) -> None:
        self.length, self._shards, self._seed = length, shards, seed
        self.num_rows = shards.num_tokens // length
        if self.num_rows == 0:
            raise DataError(
                f"{shards.num_tokens} tokens do not fill one row of {length}; give more text or shorter rows."
            )
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        """Return rows ``first`` to ``first + num − 1`` of the run, and their positions, both (num, length) int64.

        Positions start again from 0 at every document.
        """
        starts = [self._start(row) for row in range(first, first + num)]
        tokens = np.stack([self._shards.read(start, self.length) for start in starts])
        here = np.arange(self.length)
        begins = np.where(tokens == self._shards.end_of_text, here, 0)
        positions = here - np.maximum.accumulate(begins, axis=1)
        return torch.from_numpy(tokens), torch.from_numpy(positions)

    def _start(self, row: int) -> int:
        epoch, index = divmod(row, self.num_rows)
        if epoch != self._epoch:
            self._order = np.random.default_rng((self._seed, epoch)).permutation(self.num_rows)
            self._epoch = epoch
        # Another epoch cuts at other places, where there is room to.
        shift = (epoch * self.length // 3) % (self._shards.num_tokens - self.num_rows * self.length + 1)
        return int(self._order[index]) * self.length + shift
