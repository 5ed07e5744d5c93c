"""Token shards: flat little-endian files, and an index with their sizes and checksums.

A prepared folder holds ``tokenizer/``, ``index.json`` and ``SPLIT-NNNNN.bin``. One end-of-text token precedes every
document.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from attractor.config import from_dict, suggestion
from attractor.data.text.documents import ReadStats
from attractor.data.text.tokenizer import encoder, fingerprint
from attractor.errors import AttractorError, ConfigError, DataError
from attractor.files import checksum, member, new_folder, read_json, require_free, write_json
from attractor.files.manifest import CHECKSUMS, read_checksums, verify_files, write_checksums

FORMAT = "attractor-tokens-2"
_START = 1 << 20  # bytes at the start of a shard whose checksum is compared at every opening
_BATCH = 4_000_000  # characters that are tokenised in one parallel call
_PIECE = 1_000_000  # characters after which a long document is split
_LINE = re.compile(r"\n(?=\S)")  # tokenizers of words do not merge across the start of a line

Piece = tuple[str, str, bool]  # the split, the text, whether it begins a document


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, with the CRC-32 of its first MiB and of its content."""

    file: str
    num_tokens: int
    crc32_start: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split in the index: ``num_bytes`` of UTF-8 text became ``num_tokens``. Other counts: :class:`ReadStats`."""

    num_tokens: int
    num_documents: int
    num_bytes: int
    num_empty: int
    num_repaired: int
    shards: tuple[Shard, ...]


def prepare(
    out: Path,
    documents: Mapping[str, Iterable[str]] | Iterable[tuple[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    stats: Mapping[str, ReadStats] | None = None,
    shard_tokens: int = 100_000_000,
    advance: Callable[[int, int], None] = lambda num_bytes, num_tokens: None,
) -> None:
    """Tokenise documents into ``out``, on all cores. The folder must not exist, and appears when it is complete.

    Parameters
    ----------
    documents
        ``{"train": documents, "val": documents}``, or pairs (split, document) in any order.
    tokenizer
        Its ``eos_token_id`` precedes every document. A copy is stored with the shards.
    stats
        Counts of the reading for each split, which are read at the end. Each of these splits must have a document.
    shard_tokens
        The approximate number of tokens in a file.
    advance
        Called with the numbers of bytes and tokens just done.

    Raises
    ------
    ConfigError
        If ``out`` exists or cannot be written, or for an invalid ``shard_tokens``.
    DataError
        If a split holds no text, or the tokenizer has no end-of-text token.
    """
    require_free(out)
    if shard_tokens < 1:
        raise ConfigError(f"shard_tokens={shard_tokens}: give a whole number from 1 up.")
    end_of_text = tokenizer.eos_token_id
    if end_of_text is None:
        raise DataError("this tokenizer has no end-of-text token (eos_token); set one, or train one on the text.")
    encode = encoder(tokenizer)
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    stats = dict(stats or {})
    if isinstance(documents, Mapping):
        stats = dict.fromkeys(documents, ReadStats()) | stats
        pairs: Iterable[tuple[str, str]] = ((split, text) for split, texts in documents.items() for text in texts)
    else:
        pairs = documents
    with new_folder(out) as part:
        tokenizer.save_pretrained(part / "tokenizer")
        splits = _write_shards(part, _tokenize(pairs, encode), end_of_text, dtype, stats, shard_tokens, advance)
        index = {
            "format": FORMAT,
            "dtype": dtype.str,
            "vocab_size": vocab_size,
            "end_of_text": end_of_text,
            "tokenizer": fingerprint(tokenizer),
            "splits": {name: asdict(split) for name, split in splits.items()},
        }
        write_json(part / "index.json", index)
        write_checksums(part)


def _write_shards(
    folder: Path,
    batches: Iterable[Iterable[tuple[Piece, Any]]],
    end_of_text: int,
    dtype: np.dtype[Any],
    stats: Mapping[str, ReadStats],
    shard_tokens: int,
    advance: Callable[[int, int], None],
) -> dict[str, Split]:
    writers = {split: _ShardWriter(folder, split, shard_tokens) for split in stats}
    try:
        for batch in batches:
            done_bytes = done_tokens = 0
            for (split, text, first), encoding in batch:
                if split not in writers:
                    writers[split] = _ShardWriter(folder, split, shard_tokens)
                tokens = np.array([end_of_text, *encoding.ids] if first else encoding.ids, dtype=dtype)
                num_bytes = len(text.encode())
                writers[split].add(tokens, num_bytes, begins=first)
                done_bytes, done_tokens = done_bytes + num_bytes, done_tokens + len(tokens)
            advance(done_bytes, done_tokens)
        return {split: writer.finish(stats.get(split, ReadStats())) for split, writer in writers.items()}
    finally:
        for writer in writers.values():
            writer.close()


def _tokenize(
    pairs: Iterable[tuple[str, str]], encode: Callable[[list[str]], list[Any]]
) -> Iterator[Iterable[tuple[Piece, Any]]]:
    """Yield batches of pieces with their encodings. The next batch is tokenised while the caller writes this one."""
    with ThreadPoolExecutor(1) as pool:
        before: list[Piece] = []
        encoded: Future[list[Any]] = pool.submit(list)
        for batch in _batches(pairs):
            after = pool.submit(encode, [text for _, text, _ in batch])
            yield zip(before, encoded.result(), strict=True)
            before, encoded = batch, after
        yield zip(before, encoded.result(), strict=True)


def _batches(pairs: Iterable[tuple[str, str]]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for split, document in pairs:
        for text, first in _pieces(document):
            batch.append((split, text, first))
            size += len(text) + 100  # a short piece has its cost too
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _pieces(document: str) -> Iterator[tuple[str, bool]]:
    """Split a long document at starts of lines, so that all cores have work and memory use is bounded."""
    begin = 0
    while cut := _LINE.search(document, begin + _PIECE):
        yield document[begin : cut.end()], begin == 0
        begin = cut.end()
    yield document[begin:], begin == 0


class _ShardWriter:
    """Writes the shards of one split, one after the other."""

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._file: IO[bytes] | None = None
        self._shards: list[Shard] = []
        self._num_documents = self._num_bytes = 0
        self._num_tokens = self._crc32_start = self._crc32 = self._size = 0  # of the open shard

    def add(self, tokens: NDArray[Any], num_bytes: int, *, begins: bool) -> None:
        if begins and self._num_tokens >= self._limit:
            self._end_shard()
        if self._file is None:
            self._file = (self._folder / f"{self._split}-{len(self._shards):05d}.bin").open("wb")
        data = tokens.tobytes()
        self._file.write(data)
        self._crc32_start = zlib.crc32(data[: max(0, _START - self._size)], self._crc32_start)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._size += len(data)
        self._num_tokens += len(tokens)
        self._num_documents += begins
        self._num_bytes += num_bytes

    def finish(self, stats: ReadStats) -> Split:
        if not self._num_documents:
            raise DataError(f"split {self._split!r} holds no text.")
        self._end_shard()
        return Split(
            num_tokens=sum(s.num_tokens for s in self._shards),
            num_documents=self._num_documents,
            num_bytes=self._num_bytes,
            num_empty=stats.num_empty,
            num_repaired=stats.num_repaired,
            shards=tuple(self._shards),
        )

    def close(self) -> None:
        """Close the open file, also after an error."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def _end_shard(self) -> None:
        assert self._file is not None
        self._file.close()
        name = Path(self._file.name).name
        self._shards.append(
            Shard(file=name, num_tokens=self._num_tokens, crc32_start=self._crc32_start, crc32=self._crc32)
        )
        self._file = None
        self._num_tokens = self._crc32_start = self._crc32 = self._size = 0


class Shards:
    """One split of a prepared folder, as one memory-mapped sequence of tokens.

    Opening checks the size and the start of every file; :meth:`verify` checks the rest.

    Attributes
    ----------
    num_tokens, num_documents, num_bytes
        Counts of the split; bytes are those of the UTF-8 text.
    vocab_size, end_of_text, tokenizer
        The size of the vocabulary, the end-of-text token, and the :func:`fingerprint` of the tokenizer.

    Raises
    ------
    DataError
        If the index or a file is damaged, or the split does not exist.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        index = _read_index(folder)
        splits = index["splits"]
        if split not in splits:
            raise DataError(f"{folder}: has no split {split!r}; {suggestion(split, splits)}")
        about: Split = splits[split]
        self._folder, self._dtype, self._shards = folder, np.dtype(index["dtype"]), about.shards
        self.vocab_size: int = index["vocab_size"]
        self.end_of_text: int = index["end_of_text"]
        self.tokenizer: str = index["tokenizer"]
        self.num_tokens, self.num_documents, self.num_bytes = about.num_tokens, about.num_documents, about.num_bytes
        files = [member(folder, s.file, DataError, folder / "index.json") for s in about.shards]
        self._maps = [_open(file, s, self._dtype) for file, s in zip(files, about.shards, strict=True)]
        self._ends = np.cumsum([s.num_tokens for s in about.shards])

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Return ``length`` tokens from ``start`` on, (length,) int64."""
        if not 0 <= start <= start + length <= self.num_tokens:
            raise DataError(f"tokens {start} to {start + length} do not exist; there are {self.num_tokens}.")
        tokens = np.empty(length, dtype=np.int64)
        which, done = int(np.searchsorted(self._ends, start, side="right")), 0
        while done < length:
            offset = start + done - (int(self._ends[which - 1]) if which else 0)
            piece = self._maps[which][offset : offset + length - done]
            tokens[done : done + len(piece)] = piece
            done, which = done + len(piece), which + 1
        if length and tokens.max() >= self.vocab_size:
            raise DataError(
                f"{self._folder}: token id {tokens.max()} lies outside the vocabulary of {self.vocab_size}, "
                "so a shard is damaged; prepare the text again."
            )
        return tokens

    def verify(self) -> None:
        """Read all files and compare their checksums. Raises DataError for the first damaged file."""
        for shard in self._shards:
            if checksum(self._folder / shard.file) != shard.crc32:
                raise _damaged_shard(self._folder / shard.file)
        if (self._folder / CHECKSUMS).exists():  # of the tokenizer and the index
            expected = read_checksums(self._folder, DataError)
            others = [name for name in expected if not name.endswith(".bin")]
            verify_files(self._folder, expected, others, DataError)


def list_splits(folder: Path) -> list[str]:
    """Return the names of the splits in a prepared folder."""
    return list(_read_index(folder)["splits"])


def _read_index(folder: Path) -> dict[str, Any]:
    file = folder / "index.json"
    if not file.exists():
        raise DataError(f"{folder}: no index.json here; make one with: attractor data prepare.")
    index = read_json(file, DataError, advice="prepare the text again")
    if index.get("format") != FORMAT:
        raise DataError(f"{file}: not the index of prepared text (its format is not {FORMAT!r}).")
    try:
        if index["dtype"] not in ("<u2", "<u4"):
            raise ConfigError(f"dtype must be <u2 or <u4, not {index['dtype']!r}")
        for name, kind in (("vocab_size", int), ("end_of_text", int), ("tokenizer", str)):
            if type(index[name]) is not kind:
                raise ConfigError(f"{name} must be {kind.__name__}, not {index[name]!r}")
        index["splits"] = {name: from_dict(Split, split) for name, split in index["splits"].items()}
        for name, split in index["splits"].items():
            if sum(s.num_tokens for s in split.shards) != split.num_tokens:
                raise ConfigError(f"the counts of split {name!r} do not add up")
    except (KeyError, TypeError, AttributeError, AttractorError) as error:
        raise DataError(f"{file}: is damaged ({error}); prepare the text again.") from error
    return index


def _open(file: Path, shard: Shard, dtype: np.dtype[Any]) -> NDArray[Any]:
    expected = shard.num_tokens * dtype.itemsize
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = zlib.crc32(handle.read(_START))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); prepare the text again.") from error
    if size != expected:
        raise DataError(f"{file}: should hold {expected} bytes and holds {size}; prepare the text again.")
    if start != shard.crc32_start:
        raise _damaged_shard(file)
    return np.memmap(file, dtype=dtype, mode="r")


def _damaged_shard(file: Path) -> DataError:
    return DataError(f"{file}: is not the file that was written (its checksum differs); prepare the text again.")
