"""Token shards: flat little-endian files with an index that says what they must hold, written whole or not at all.

A prepared folder holds ``tokenizer/``, ``index.json`` and ``SPLIT-NNNNN.bin``. Every document stands behind one end-of-text token.
"""

import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from attractor.config import suggestion
from attractor.errors import DataError

FORMAT = "attractor-tokens-1"
_CHECKED = 1 << 20  # bytes at the start of a shard that its checksum covers
_BATCH = 256  # documents tokenised in one parallel call


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file. ``num_bytes`` of UTF-8 text became its tokens."""

    file: str
    num_tokens: int
    num_documents: int
    num_bytes: int
    checksum: int


def prepare(
    out: Path,
    splits: dict[str, Iterable[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    shard_tokens: int = 100_000_000,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> None:
    """Tokenise documents into ``out``, on all cores. The folder appears when it is complete.

    Parameters
    ----------
    out
        Must not exist.
    splits
        ``{"train": documents, "val": documents}``.
    tokenizer
        Its ``eos_token_id`` stands before every document. A copy is kept beside the shards.
    shard_tokens
        About how many tokens a file holds.
    advance
        Called with the number of bytes just done.
    """
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        tokenizer.save_pretrained(part / "tokenizer")
        dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
        index = {
            "format": FORMAT,
            "dtype": dtype.str,
            "vocab_size": len(tokenizer),
            "end_of_text": tokenizer.eos_token_id,
            "tokenizer": fingerprint(tokenizer),
            "splits": {
                name: [asdict(s) for s in _write(part, name, documents, tokenizer, dtype, shard_tokens, advance)]
                for name, documents in splits.items()
            },
        }
        (part / "index.json").write_text(json.dumps(index, indent=2) + "\n")
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest by which equal vocabularies are known."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def _write(
    folder: Path,
    split: str,
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    dtype: np.dtype[Any],
    shard_tokens: int,
    advance: Callable[[int], None],
) -> Iterator[Shard]:
    pieces: list[np.ndarray] = []
    num_tokens = num_bytes = number = 0

    def flush() -> Shard:
        tokens = np.concatenate(pieces)
        file = folder / f"{split}-{number:05d}.bin"
        tokens.tofile(file)
        return Shard(
            file=file.name,
            num_tokens=len(tokens),
            num_documents=len(pieces),
            num_bytes=num_bytes,
            checksum=zlib.crc32(tokens.tobytes()[:_CHECKED]),
        )

    for batch in itertools.batched(documents, _BATCH) if hasattr(itertools, "batched") else _batched(documents):
        for text, ids in zip(batch, tokenizer(list(batch), add_special_tokens=False)["input_ids"], strict=True):
            pieces.append(np.array([tokenizer.eos_token_id, *ids], dtype=dtype))
            num_tokens += len(pieces[-1])
            num_bytes += len(text.encode())
            if num_tokens >= shard_tokens:
                yield flush()
                pieces, num_tokens, num_bytes, number = [], 0, 0, number + 1
        advance(sum(len(text.encode()) for text in batch))
    if pieces:
        yield flush()


def _batched(documents: Iterable[str]) -> Iterator[tuple[str, ...]]:
    rest = iter(documents)
    while batch := tuple(itertools.islice(rest, _BATCH)):
        yield batch


class Shards:
    """One split of a prepared folder, as one long memory-mapped sequence of tokens.

    Attributes
    ----------
    num_tokens, num_documents, num_bytes
        Of the split.
    vocab_size, end_of_text, tokenizer
        Of the vocabulary; ``tokenizer`` is its :func:`fingerprint`.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        index = _read_index(folder)
        if split not in index["splits"]:
            raise DataError(f"{folder}: has no split {split!r}; {suggestion(split, index['splits'])}")
        shards = [Shard(**s) for s in index["splits"][split]]
        dtype = np.dtype(index["dtype"])
        self.vocab_size, self.end_of_text, self.tokenizer = (
            index["vocab_size"],
            index["end_of_text"],
            index["tokenizer"],
        )
        self.num_tokens = sum(s.num_tokens for s in shards)
        self.num_documents = sum(s.num_documents for s in shards)
        self.num_bytes = sum(s.num_bytes for s in shards)
        self._maps = [_open(folder / s.file, s, dtype) for s in shards]
        self._ends = np.cumsum([s.num_tokens for s in shards])

    def read(self, start: int, length: int) -> np.ndarray:
        """Return ``length`` tokens from ``start`` on, int64."""
        if not 0 <= start <= start + length <= self.num_tokens:
            raise DataError(f"tokens {start} to {start + length} do not exist; there are {self.num_tokens}.")
        pieces = []
        which = int(np.searchsorted(self._ends, start, side="right"))
        while length:
            offset = start - (int(self._ends[which - 1]) if which else 0)
            piece = self._maps[which][offset : offset + length]
            pieces.append(piece)
            start, length, which = start + len(piece), length - len(piece), which + 1
        tokens = np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, dtype=np.int64)
        if tokens.size and tokens.max() >= self.vocab_size:
            raise DataError(
                f"token id {tokens.max()} lies outside the vocabulary of {self.vocab_size}; the shards are damaged."
            )
        return tokens


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / "index.json"
    try:
        index = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no index.json here; make one with: attractor data prepare.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({error}).") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{file}: not the index of prepared text (its format is not {FORMAT!r}).")
    return index


def _open(file: Path, shard: Shard, dtype: np.dtype[Any]) -> np.ndarray:
    wanted = shard.num_tokens * dtype.itemsize
    if not file.is_file() or file.stat().st_size != wanted:
        size = f"{file.stat().st_size} bytes" if file.is_file() else "nothing"
        raise DataError(f"{file}: should hold {wanted} bytes and holds {size}; prepare the text again.")
    with file.open("rb") as handle:
        if zlib.crc32(handle.read(_CHECKED)) != shard.checksum:
            raise DataError(f"{file}: is not the file that was written (its checksum differs); prepare the text again.")
    return np.memmap(file, dtype=dtype, mode="r")
