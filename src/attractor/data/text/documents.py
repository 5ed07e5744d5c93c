"""Documents from files and hubs, one string each."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from attractor.config import suggestion
from attractor.errors import DataError

OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".xz": lambda path: lzma.open(path, "rb"),
    ".gz": lambda path: gzip.open(path, "rb"),
    ".bz2": lambda path: bz2.open(path, "rb"),
    ".zst": lambda path: _zstandard(path),
}
KINDS = (".jsonl", ".txt", ".md", ".parquet")
HUB = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"), "fineweb": ("HuggingFaceFW/fineweb", "sample-10BT")}


@dataclass
class Reading:
    """What has been read so far."""

    num_documents: int = 0
    num_empty: int = 0  # left out
    num_mended: int = 0  # documents in which bytes that are not UTF-8 were replaced


def read_documents(
    sources: Sequence[str | Path], *, field: str = "text", reading: Reading | None = None
) -> Iterator[str]:
    """Yield the documents of files, folders and hub datasets, in order.

    Parameters
    ----------
    sources
        ``.jsonl`` (one object a line), ``.parquet``, ``.txt`` and ``.md`` (one document a file), each also compressed (``.xz``,
        ``.gz``, ``.bz2``, ``.zst``); folders of such; the name of a hub dataset, ``owner/name`` or ``owner/name:configuration``,
        which is streamed; ``fineweb-edu`` for that one.
    field
        Where the text stands in a record.
    reading
        Counts are kept here.

    Raises
    ------
    DataError
        For sources that do not exist, are empty, binary or malformed.
    """
    reading = reading if reading is not None else Reading()
    for source in sources:
        before = reading.num_documents
        for text in _one(source, field, reading):
            if "\0" in text:
                raise DataError(f"{source}: holds NUL characters, so it is binary and not text.")
            if text.strip():
                reading.num_documents += 1
                yield text
            else:
                reading.num_empty += 1
        if reading.num_documents == before:
            raise DataError(f"{source}: holds no text.")


def _one(source: str | Path, field: str, reading: Reading) -> Iterator[str]:
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) in KINDS)
        if not files:
            raise DataError(f"{path}: no {', '.join(KINDS)} file in this folder.")
        for file in files:
            yield from _file(file, field, reading)
    elif path.exists():
        yield from _file(path, field, reading)
    elif str(source) in HUB or (str(source).count("/") == 1 and not path.suffix):
        yield from _records(_hub(str(source)), field, str(source))
    else:
        raise DataError(f"{source}: no such file or folder; {suggestion(str(source), HUB)}")


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def _file(path: Path, field: str, reading: Reading) -> Iterator[str]:
    kind = _kind(path)
    if kind not in KINDS:
        raise DataError(f"{path}: cannot read this kind of file; {suggestion(kind, KINDS)}")
    if kind == ".parquet":
        yield from _records(
            _datasets().load_dataset("parquet", data_files=str(path), split="train", streaming=True), field, str(path)
        )
        return
    try:
        with OPENERS.get(path.suffix, lambda p: p.open("rb"))(path) as file:
            if kind == ".jsonl":
                yield from _lines(file, path, field, reading)
            else:
                yield _decode(file.read(), reading)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from error


def _lines(file: IO[bytes], path: Path, field: str, reading: Reading) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(_decode(line, reading))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {number} is not JSON ({error.msg}).") from error
        yield _text(record, field, f"{path}: line {number}")


def _records(records: Iterable[dict[str, Any]], field: str, where: str) -> Iterator[str]:
    for number, record in enumerate(records, start=1):
        yield _text(record, field, f"{where}: record {number}")


def _text(record: Any, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        names = sorted(record) if isinstance(record, dict) else []
        raise DataError(f"{where} has no field {field!r}; {suggestion(field, names) if names else 'give an object.'}")
    if not isinstance(record[field], str):
        raise DataError(f"{where}: field {field!r} holds {type(record[field]).__name__}, not text.")
    return record[field]


def _decode(raw: bytes, reading: Reading) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        reading.num_mended += 1
        return raw.decode(errors="replace")


def _hub(name: str) -> Iterable[dict[str, Any]]:
    path, configuration = HUB.get(name, (*name.split(":", 1), None)[:2])
    return _datasets().load_dataset(path, name=configuration, split="train", streaming=True)


def _datasets() -> Any:
    try:
        import datasets  # heavy, and needed for parquet and hubs alone
    except ImportError as error:
        raise DataError(
            "parquet files and hub datasets need one more library: pip install 'attractor-models[data]'."
        ) from error
    return datasets


def _zstandard(path: Path) -> IO[bytes]:
    try:
        import zstandard  # optional, needed for .zst alone
    except ImportError as error:
        raise DataError(f"{path}: .zst needs one more library: pip install 'attractor-models[data]'.") from error
    return zstandard.open(path, "rb")
