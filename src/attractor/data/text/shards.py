"""Token shards: flat little-endian files, and an index with their sizes and checksums.

A prepared folder holds ``tokenizer/``, ``index.json`` and ``SPLIT-NNNNN.bin``. :mod:`attractor.data.text.tokenizer` says
which tokens begin and end a document. ``val-changed.json`` holds documents that their tokens do not give back.
"""

import json
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
from attractor.data.text.documents import NUM_NAMED, ReadStats
from attractor.data.text.tokenizer import Encoder, begin_token, fingerprint
from attractor.errors import AttractorError, ConfigError, DataError
from attractor.files import checksum, member, new_folder, read_json, require_free, write_json
from attractor.files.manifest import CHECKSUMS, read_checksums, verify_files, write_checksums

FORMAT = "attractor-tokens-2"
ORIGINALS = "val-changed.json"  # the text of held-out documents that their tokens do not give back, by number
_START = 1 << 20  # bytes at the start of a shard whose checksum is compared at every opening
_BATCH = 4_000_000  # characters of the documents that are tokenised at a time

Tokenised = tuple[str, str, NDArray[np.uint32], str]  # split, document, its tokens, how they change it


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, with the CRC-32 of its first MiB and of its content."""

    file: str
    num_tokens: int
    crc32_start: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split in the index: ``num_bytes`` of UTF-8 text became ``num_tokens``.

    Of ``num_changed`` documents, the tokens give another text; ``changed`` says how, for the first few. Other counts are
    those of :class:`ReadStats`.
    """

    num_tokens: int
    num_documents: int
    num_bytes: int
    num_empty: int
    num_repaired: int
    num_left_out: int = 0
    left_out: tuple[str, ...] = ()
    num_changed: int = 0
    changed: tuple[str, ...] = ()
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
        Any with a ``tokenizer.json``. A copy is stored with the shards.
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
    encoder, begin_of_text = Encoder(tokenizer), begin_token(tokenizer)
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
        writers = _Writers(part, begin_of_text, end_of_text, dtype, shard_tokens)
        splits = writers.write(_tokenize(pairs, encoder), stats, advance)
        index = {
            "format": FORMAT,
            "dtype": dtype.str,
            "vocab_size": vocab_size,
            "begin_of_text": begin_of_text,
            "end_of_text": end_of_text,
            "tokenizer": fingerprint(tokenizer),
            "splits": {name: asdict(split) for name, split in splits.items()},
        }
        write_json(part / "index.json", index)
        write_checksums(part)


def _tokenize(pairs: Iterable[tuple[str, str]], encoder: Encoder) -> Iterator[list[Tokenised]]:
    """Yield batches of documents with their tokens. The next batch is tokenised while the caller writes this one."""

    def encode(batch: list[tuple[str, str]]) -> list[Tokenised]:
        tokens = encoder([text for _, text in batch])
        return [(*pair, ids, encoder.changes(pair[1], ids)) for pair, ids in zip(batch, tokens, strict=True)]

    with ThreadPoolExecutor(1) as pool:
        encoded: Future[list[Tokenised]] = pool.submit(list)
        for batch in _batches(pairs):
            after = pool.submit(encode, batch)
            yield encoded.result()
            encoded = after
        yield encoded.result()


def _batches(pairs: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for pair in pairs:
        batch.append(pair)
        size += len(pair[1]) + 100  # a short document has its cost too
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Writers:
    """Writes documents into the shards of their splits."""

    def __init__(self, folder: Path, begin: int, end: int, dtype: np.dtype[Any], shard_tokens: int) -> None:
        self._begin, self._end = np.array([begin], dtype), np.array([end] if end != begin else [], dtype)
        self._folder, self._dtype, self._limit = folder, dtype, shard_tokens
        self._writers: dict[str, _ShardWriter] = {}

    def write(
        self, batches: Iterable[list[Tokenised]], stats: Mapping[str, ReadStats], advance: Callable[[int, int], None]
    ) -> dict[str, Split]:
        for split in stats:
            self._writer(split)
        try:
            for batch in batches:
                done_bytes = done_tokens = 0
                for split, text, ids, change in batch:
                    tokens = np.concatenate([self._begin, ids.astype(self._dtype), self._end])
                    num_bytes = len(text.encode())
                    self._writer(split).add(tokens, num_bytes, (text, change) if change else None)
                    done_bytes, done_tokens = done_bytes + num_bytes, done_tokens + len(tokens)
                advance(done_bytes, done_tokens)
            return {split: writer.finish(stats.get(split, ReadStats())) for split, writer in self._writers.items()}
        finally:
            for writer in self._writers.values():
                writer.close()

    def _writer(self, split: str) -> "_ShardWriter":
        if split not in self._writers:
            self._writers[split] = _ShardWriter(self._folder, split, self._limit)
        return self._writers[split]


class _ShardWriter:
    """Writes the shards of one split, one after the other."""

    def __init__(self, folder: Path, split: str, shard_tokens: int) -> None:
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._file: IO[bytes] | None = None
        self._shards: list[Shard] = []
        self._num_documents = self._num_bytes = self._num_changed = 0
        self._changed: list[str] = []
        self._originals: dict[int, str] = {}
        self._num_tokens = self._crc32_start = self._crc32 = self._size = 0  # of the open shard

    def add(self, tokens: NDArray[Any], num_bytes: int, changed: tuple[str, str] | None) -> None:
        if changed is not None:
            self._num_changed += 1
            if len(self._changed) < NUM_NAMED:
                self._changed.append(f"document {self._num_documents + 1}: {changed[1]}")
            if self._split == "val":
                self._originals[self._num_documents] = changed[0]
        if self._num_tokens >= self._limit:
            self._end_shard()
        if self._file is None:
            self._file = (self._folder / f"{self._split}-{len(self._shards):05d}.bin").open("wb")
        data = tokens.tobytes()
        self._file.write(data)
        self._crc32_start = zlib.crc32(data[: max(0, _START - self._size)], self._crc32_start)
        self._crc32 = zlib.crc32(data, self._crc32)
        self._size += len(data)
        self._num_tokens += len(tokens)
        self._num_documents += 1
        self._num_bytes += num_bytes

    def finish(self, stats: ReadStats) -> Split:
        if not self._num_documents:
            raise DataError(
                f"split {self._split!r} holds no text; give more text, or for val: val sources, or val_fraction=0."
            )
        self._end_shard()
        if self._originals:
            (self._folder / ORIGINALS).write_text(json.dumps(self._originals), encoding="utf-8")
        return Split(
            num_tokens=sum(s.num_tokens for s in self._shards),
            num_documents=self._num_documents,
            num_bytes=self._num_bytes,
            num_empty=stats.num_empty,
            num_repaired=stats.num_repaired,
            num_left_out=stats.num_left_out,
            left_out=tuple(stats.left_out),
            num_changed=self._num_changed,
            changed=tuple(self._changed),
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
    num_changed, changed
        Documents whose tokens give another text, and how, for the first few.
    vocab_size, begin_of_text, end_of_text, tokenizer
        The size of the vocabulary, the tokens that begin and end a document, and the :func:`fingerprint` of the tokenizer.

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
        self.begin_of_text: int = index["begin_of_text"]
        self.end_of_text: int = index["end_of_text"]
        self.tokenizer: str = index["tokenizer"]
        self.num_tokens, self.num_documents, self.num_bytes = about.num_tokens, about.num_documents, about.num_bytes
        self.num_changed, self.changed = about.num_changed, about.changed
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
        state = "holds no prepared text" if folder.exists() else "does not exist"
        raise DataError(f"{folder}: {state}; prepare a folder with: attractor data prepare SOURCE --out FOLDER.")
    index = read_json(file, DataError, advice="prepare the text again")
    if index.get("format") != FORMAT:
        raise DataError(f"{file}: not the index of prepared text (its format is not {FORMAT!r}); give another folder.")
    try:
        if index["dtype"] not in ("<u2", "<u4"):
            raise ConfigError(f"dtype must be <u2 or <u4, not {index['dtype']!r}")
        index.setdefault("begin_of_text", index["end_of_text"])  # folders of version 0.1
        for name, kind in (("vocab_size", int), ("begin_of_text", int), ("end_of_text", int), ("tokenizer", str)):
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
