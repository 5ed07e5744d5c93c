"""Read documents from files, folders and hub datasets, one string each."""

import bz2
import codecs
import gzip
import importlib
import io
import json
import lzma
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attractor.config import suggestion
from attractor.errors import DataError
from attractor.files import real_path

KINDS = (".jsonl", ".txt", ".md", ".parquet")
HUB = {"fineweb-edu": "HuggingFaceFW/fineweb-edu:sample-10BT", "fineweb": "HuggingFaceFW/fineweb:sample-10BT"}
MAX_DOCUMENT, MAX_LINE = 1 << 30, 1 << 28  # bytes of a file that is one document, and of a line of JSON, decompressed
NUM_NAMED = 5  # things left out that are named; the others are only counted
_NUM_PROBED = 1000  # records without text, before any with text, after which a source is refused
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and surrogates, which have no UTF-8
# The first bytes of encodings; UTF-32 comes first because it begins as UTF-16 does.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass
class ReadStats:
    """Counts of what has been read so far.

    Attributes
    ----------
    num_documents, num_empty
        Documents that were returned, and empty ones, which are not.
    num_repaired
        Documents in which bytes that are not text were replaced by U+FFFD.
    num_left_out, left_out
        Files of folders that hold no text, and records without a text; the first few with their reasons.
    num_bytes_read
        Bytes of the files, compressed as they are. Hub datasets are not counted.
    """

    num_documents: int = 0
    num_empty: int = 0
    num_repaired: int = 0
    num_left_out: int = 0
    left_out: list[str] = field(default_factory=list)
    num_bytes_read: int = 0

    def leave_out(self, what: str) -> None:
        """Count something that holds no text, and keep its name if it is among the first."""
        self.num_left_out += 1
        if len(self.left_out) < NUM_NAMED:
            self.left_out.append(what)


def read_documents(
    sources: Sequence[str | Path], *, field: str = "text", stats: ReadStats | None = None
) -> Iterator[str]:
    """Yield the documents of files, folders and hub datasets, in order.

    Parameters
    ----------
    sources
        ``.jsonl`` (one object a line), ``.txt`` and ``.md`` (one document a file), each also compressed (``.xz``,
        ``.gz``, ``.bz2``, ``.zst``); ``.parquet``; folders of such; the name of a hub dataset, ``owner/name`` or
        ``owner/name:configuration``, whose split ``train`` is streamed; ``fineweb-edu`` is short for that dataset.
        Text is UTF-8, or UTF-16 or UTF-32 with a byte-order mark.
    field
        The field of a record that holds the text.
    stats
        An object whose counts are updated.

    Raises
    ------
    DataError
        For sources that do not exist, hold no text, or are binary or malformed, and documents of more than a gibibyte.
    """
    stats = stats if stats is not None else ReadStats()
    found = [(source, _files(source, stats.leave_out)) for source in sources]  # before the first is read
    for source, files in found:
        before, reader = stats.num_documents, _Reader(field, stats)
        for text in reader.source(source, files):
            if not text.strip():
                stats.num_empty += 1
                continue
            repaired = repair(text)
            stats.num_repaired += repaired is not text
            stats.num_documents += 1
            yield repaired
        if stats.num_documents == before:
            raise DataError(reader.reason or f"{source}: holds no text.")


def total_bytes(sources: Sequence[str | Path]) -> int | None:
    """Return the final value of ``ReadStats.num_bytes_read``, or None if a source is a hub dataset."""
    files = [_files(source) for source in sources]
    if any(f is None for f in files):
        return None
    return sum(file.stat().st_size for f in files for file in f or ())


def decode(raw: bytes) -> str:
    """Return bytes as text: UTF-8, or what their byte-order mark says. Other bytes become surrogates for :func:`repair`."""
    encoding = next((name for mark, name in _MARKS.items() if raw.startswith(mark)), None)
    return raw.decode(encoding, "replace") if encoding else raw.decode("utf-8-sig", "surrogateescape")


def repair(text: str) -> str:
    """Replace NUL and surrogates by U+FFFD. Other text is returned as it is."""
    return _NOT_TEXT.sub("\ufffd", text) if _NOT_TEXT.search(text) else text


def _files(source: str | Path, leave_out: Callable[[str], None] = lambda what: None) -> list[Path] | None:
    """Return the files of a source, or None for a hub dataset."""
    path = Path(source)
    if path.is_dir():
        files = _walk(path, leave_out)
        if not files:
            raise DataError(f"{path}: no {', '.join(KINDS)} file in this folder.")
        return files
    if path.exists():
        if _kind(path) not in KINDS:
            raise DataError(f"{path}: cannot read this kind of file; {suggestion(_kind(path), KINDS)}")
        return [path]
    if str(source) in HUB or (_HUB_NAME.fullmatch(str(source)) and _kind(path) not in KINDS):
        return None
    raise DataError(f"{source}: no such file or folder, nor a known dataset; {suggestion(str(source), HUB)}")


def _walk(top: Path, leave_out: Callable[[str], None]) -> list[Path]:
    """Return the text files of a folder in the order of their paths. Links are followed, each folder is read once."""
    files, seen = [], set()
    for name, folders, names in os.walk(top, followlinks=True, onerror=lambda error: leave_out(str(error))):
        folder = Path(name)
        if (place := real_path(folder)) in seen:
            leave_out(f"{folder}: links to a folder that is read already")
            folders.clear()
            continue
        seen.add(place)
        for hidden in (each for each in (*folders, *names) if each.startswith(".")):
            leave_out(f"{folder / hidden}: is hidden")
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        for file in (folder / each for each in names if not each.startswith(".")):
            if _kind(file) in KINDS and file.is_file():
                files.append(file)
            else:
                leave_out(f"{file}: is no {', '.join(KINDS)} file")
    return sorted(files)


def _kind(path: Path) -> str:
    name = path.name.lower()
    return Path(Path(name).stem if Path(name).suffix in OPENERS else name).suffix


class _Reader:
    """Reads the texts of one source. Records without a text are left out."""

    def __init__(self, field: str, stats: ReadStats) -> None:
        self._field, self._stats = field, stats
        self._num_refused, self._any = 0, False
        self.reason = ""  # why the first record was left out

    def source(self, source: str | Path, files: list[Path] | None) -> Iterator[str]:
        where = str(source)
        try:
            if files is None:
                where = f"{source} (no such file or folder, so a dataset of the hub)"
                yield from self._records(_hub(HUB.get(str(source), str(source))), where)
            for file in files or ():
                where = str(file)
                before = self._stats.num_bytes_read
                yield from self._file(file)
                self._stats.num_bytes_read = before + file.stat().st_size
        except DataError:
            raise
        except Exception as error:  # every format and library has its own classes
            raise DataError(f"{where}: cannot be read ({' '.join(str(error).split())}).") from error

    def _file(self, path: Path) -> Iterator[str]:
        before = self._stats.num_bytes_read
        with path.open("rb") as raw:
            if _kind(path) == ".parquet":
                texts = self._parquet(raw, path)
            else:
                file = decompressed(raw, path)
                texts = self._lines(file, path) if _kind(path) == ".jsonl" else self._one_document(file, path)
            for text in texts:
                self._stats.num_bytes_read = before + raw.tell()
                yield text

    def _one_document(self, file: Any, path: Path) -> Iterator[str]:
        raw = file.read(MAX_DOCUMENT + 1)
        if len(raw) > MAX_DOCUMENT:
            raise DataError(f"{path}: is one document of more than {MAX_DOCUMENT:,} bytes; split it.")
        if b"\0" in raw and not raw.startswith(tuple(_MARKS)):
            raise DataError(f"{path}: holds NUL bytes, so it is binary or UTF-16; give UTF-8 text.")
        yield decode(raw)

    def _lines(self, file: Any, path: Path) -> Iterator[str]:
        mark = file.peek(4)[:4]
        wide = any(mark.startswith(each) for each in _MARKS)
        lines: Any = io.TextIOWrapper(file, "utf-32" if mark in _MARKS else "utf-16", "replace") if wide else file
        number = 0
        while line := lines.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise DataError(f"{path}: line {number} has more than {MAX_LINE:,} bytes; split the document.")
            if not line.strip():
                continue
            try:
                record = json.loads(line if wide else decode(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number} is not JSON ({error}).") from error
            yield from self._text(record, f"{path}: line {number}")

    def _parquet(self, raw: Any, path: Path) -> Iterator[str]:
        file = _library("pyarrow.parquet", "parquet files").ParquetFile(raw)
        # Without the field, the error message needs all names.
        columns = [self._field] if self._field in file.schema_arrow.names else None
        batches = file.iter_batches(batch_size=1024, columns=columns)
        yield from self._records((record for batch in batches for record in batch.to_pylist()), str(path))

    def _records(self, records: Iterable[Any], where: str) -> Iterator[str]:
        for number, record in enumerate(records, start=1):
            yield from self._text(record, f"{where}: record {number}")

    def _text(self, record: Any, where: str) -> Iterator[str]:
        """Yield the text of a record, or nothing."""
        if not isinstance(record, dict) or self._field not in record:
            names = sorted(map(str, record)) if isinstance(record, dict) else []
            advice = suggestion(self._field, names) if names else "give an object."
            reason = f"{where} has no field {self._field!r}; {advice}"
        elif not isinstance(record[self._field], str):
            reason = f"{where}: field {self._field!r} holds {type(record[self._field]).__name__}, not text."
        else:
            self._any = True
            yield record[self._field]
            return
        self.reason = self.reason or reason
        self._num_refused += 1
        if not self._any and self._num_refused == _NUM_PROBED:
            raise DataError(self.reason)
        self._stats.leave_out(reason.rstrip("."))


def decompressed(raw: Any, path: Path) -> Any:
    """Return a reader of the content of an open file, which is decompressed if its name or its first bytes say so."""
    suffix = path.suffix.lower()
    if suffix not in OPENERS:
        start = raw.peek(10)
        suffix = next((name for name, magic in _MAGIC.items() if start.startswith(magic)), "")
    return io.BufferedReader(OPENERS[suffix](raw), 1 << 20) if suffix in OPENERS else raw


def _hub(name: str) -> Iterable[Any]:
    path, _, configuration = name.partition(":")
    datasets = _library("datasets", "hub datasets")
    return datasets.load_dataset(path, name=configuration or None, split="train", streaming=True)


def _zstandard(raw: Any) -> Any:
    decompressor = _library("zstandard", ".zst files").ZstdDecompressor(max_window_size=1 << 31)
    return decompressor.stream_reader(raw, read_across_frames=True)


def _library(name: str, what: str) -> Any:
    try:
        return importlib.import_module(name)  # optional, and slow to import
    except ImportError as error:
        raise DataError(f"{what} need one more library: pip install 'attractor-models[data]'.") from error


OPENERS: dict[str, Callable[[Any], Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".zst": _zstandard,
}
_MAGIC = {".xz": b"\xfd7zXZ\0", ".gz": b"\x1f\x8b\x08", ".bz2": b"BZh91AY&SY", ".zst": b"\x28\xb5\x2f\xfd"}
