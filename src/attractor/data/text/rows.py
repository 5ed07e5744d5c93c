"""Rows for training: the token sequence is cut to one length and shuffled. An epoch has every row exactly once."""

import numpy as np
import torch
from torch import Tensor

from attractor.config import require_whole
from attractor.data.text.shards import Shards
from attractor.errors import DataError


class PackedRows:
    """Rows of equal length. Row ``n`` of a run depends only on ``seed``, so a run resumes at any row and batch size.

    The sequence is circular: every epoch starts to cut it at another token, and leaves out less than one row.

    Parameters
    ----------
    shards
        The tokens.
    length
        Tokens per row.
    seed
        Seed of the order, which differs between epochs.

    Raises
    ------
    DataError
        If there are too few tokens for one row.
    """

    def __init__(self, shards: Shards, length: int, seed: int = 0) -> None:
        self.length, self.seed, self._shards = length, seed, shards
        require_whole(self, 1, "length")
        require_whole(self, 0, "seed")
        self.num_rows = shards.num_tokens // length
        if self.num_rows == 0:
            raise DataError(
                f"{shards.num_tokens} tokens do not fill one row of {length}; give more text or shorter rows."
            )
        self._epoch, self._shift, self._order = -1, 0, np.zeros(0, dtype=np.int64)

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor]:
        """Return the tokens and positions of rows ``first`` to ``first + num − 1``, both (num, length) int64.

        Positions restart from 0 at every document.
        """
        if first < 0 or num < 1:
            raise DataError(f"rows {first} to {first + num - 1} do not exist; count from 0 and ask for at least one.")
        tokens = np.stack([self._row(row) for row in range(first, first + num)])
        here = np.arange(self.length)
        begins = np.where(tokens == self._shards.begin_of_text, here, 0)
        positions = here - np.maximum.accumulate(begins, axis=1)
        return torch.from_numpy(tokens), torch.from_numpy(positions)

    def _row(self, row: int) -> np.ndarray:
        epoch, index = divmod(row, self.num_rows)
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._order = rng.permutation(self.num_rows)
            self._shift = int(rng.integers(self._shards.num_tokens)) if epoch else 0
            self._epoch = epoch
        start = (int(self._order[index]) * self.length + self._shift) % self._shards.num_tokens
        head = min(self.length, self._shards.num_tokens - start)
        if head == self.length:
            return self._shards.read(start, head)
        return np.concatenate([self._shards.read(start, head), self._shards.read(0, self.length - head)])
