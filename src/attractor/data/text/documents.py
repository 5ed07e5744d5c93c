"""Read documents from files, folders and hub datasets, one string each."""

import bz2
import gzip
import importlib
import io
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attractor.config import suggestion
from attractor.errors import DataError

KINDS = (".jsonl", ".txt", ".md", ".parquet")
HUB = {"fineweb-edu": "HuggingFaceFW/fineweb-edu:sample-10BT", "fineweb": "HuggingFaceFW/fineweb:sample-10BT"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # NUL, and surrogates, which have no UTF-8


@dataclass
class ReadStats:
    """Counts of what has been read so far.

    Attributes
    ----------
    num_documents
        Documents that were returned.
    num_empty
        Empty documents, which are skipped.
    num_repaired
        Documents in which bytes that are not UTF-8 text were replaced by U+FFFD.
    num_bytes_read
        Bytes of the files, compressed as they are. Hub datasets are not counted.
    """

    num_documents: int = 0
    num_empty: int = 0
    num_repaired: int = 0
    num_bytes_read: int = 0


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
    field
        The field of a record that holds the text.
    stats
        An object whose counts are updated.

    Raises
    ------
    DataError
        For sources that do not exist, are empty, binary or malformed.
    """
    stats = stats if stats is not None else ReadStats()
    for source, files in [(s, _files(s)) for s in sources]:  # find all files before the first is read
        before = stats.num_documents
        for text in _source(source, files, field, stats):
            if not text.strip():
                stats.num_empty += 1
                continue
            repaired = _repair(text)
            stats.num_repaired += repaired is not text
            stats.num_documents += 1
            yield repaired
        if stats.num_documents == before:
            raise DataError(f"{source}: holds no text.")


def total_bytes(sources: Sequence[str | Path]) -> int | None:
    """Return the final value of ``ReadStats.num_bytes_read``, or None if a source is a hub dataset."""
    files = [_files(source) for source in sources]
    if any(f is None for f in files):
        return None
    return sum(file.stat().st_size for f in files for file in f or ())


def _files(source: str | Path) -> list[Path] | None:
    """Return the files of a source, or None for a hub dataset."""
    path = Path(source)
    if path.is_dir():
        inside = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        files = sorted(p for p in inside if p.is_file() and _kind(p) in KINDS)
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


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def _source(source: str | Path, files: list[Path] | None, field: str, stats: ReadStats) -> Iterator[str]:
    where = str(source)
    try:
        if files is None:
            where = f"{source} (no such file or folder, so a dataset of the hub)"
            yield from _records(_hub(HUB.get(str(source), str(source))), field, where)
        for file in files or ():
            where = str(file)
            before = stats.num_bytes_read
            yield from _file(file, field, stats)
            stats.num_bytes_read = before + file.stat().st_size
    except DataError:
        raise
    except Exception as error:  # every format and library has its own classes
        raise DataError(f"{where}: cannot be read ({' '.join(str(error).split())}).") from error


def _file(path: Path, field: str, stats: ReadStats) -> Iterator[str]:
    before = stats.num_bytes_read
    with path.open("rb") as raw:
        if _kind(path) == ".parquet":
            texts = _parquet(raw, path, field)
        else:
            file = OPENERS[path.suffix](raw) if path.suffix in OPENERS else raw
            texts = _lines(file, path, field) if _kind(path) == ".jsonl" else _one_document(file, path)
        for text in texts:
            stats.num_bytes_read = before + raw.tell()
            yield text


def _one_document(file: Any, path: Path) -> Iterator[str]:
    raw = file.read()
    if b"\0" in raw:
        raise DataError(f"{path}: holds NUL bytes, so it is binary or UTF-16; give UTF-8 text.")
    yield _decode(raw)


def _lines(file: Any, path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(_decode(line))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not JSON ({error}).") from error
        yield _text(record, field, f"{path}: line {number}")


def _parquet(raw: Any, path: Path, field: str) -> Iterator[str]:
    file = _library("pyarrow.parquet", "parquet files").ParquetFile(raw)
    columns = [field] if field in file.schema_arrow.names else None  # otherwise the error message needs all names
    batches = file.iter_batches(batch_size=1024, columns=columns)
    yield from _records((record for batch in batches for record in batch.to_pylist()), field, str(path))


def _records(records: Iterable[Any], field: str, where: str) -> Iterator[str]:
    for number, record in enumerate(records, start=1):
        yield _text(record, field, f"{where}: record {number}")


def _text(record: Any, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        names = sorted(record) if isinstance(record, dict) else []
        raise DataError(f"{where} has no field {field!r}; {suggestion(field, names) if names else 'give an object.'}")
    if not isinstance(record[field], str):
        raise DataError(f"{where}: field {field!r} holds {type(record[field]).__name__}, not text.")
    return record[field]


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8-sig", "surrogateescape")  # _repair replaces bytes that are not UTF-8


def _repair(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return _NOT_TEXT.sub("\ufffd", text)
    return text if "\0" not in text else _NOT_TEXT.sub("\ufffd", text)


def _hub(name: str) -> Iterable[Any]:
    path, _, configuration = name.partition(":")
    datasets = _library("datasets", "hub datasets")
    return datasets.load_dataset(path, name=configuration or None, split="train", streaming=True)


def _zstandard(raw: Any) -> Any:
    decompressor = _library("zstandard", ".zst files").ZstdDecompressor(max_window_size=1 << 31)
    return io.BufferedReader(decompressor.stream_reader(raw, read_across_frames=True), 1 << 20)


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
