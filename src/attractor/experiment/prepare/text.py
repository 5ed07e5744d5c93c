"""Prepare text: train a tokenizer, tokenise, and write shards."""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from attractor.data.text import (
    ReadStats,
    Shards,
    list_splits,
    load_tokenizer,
    prepare,
    read_documents,
    total_bytes,
    train_tokenizer,
)
from attractor.errors import ConfigError
from attractor.files import real_path, require_free
from attractor.progress import TaskProgress

HELD_OUT_CHARACTERS = 10_000  # at least so many of a single document, or a tenth of it


@dataclass(frozen=True, kw_only=True)
class TextSplit:
    """Counts of one split: ``num_bytes`` of UTF-8 text in ``num_documents`` became ``num_tokens``.

    The tokens of ``num_changed`` documents give another text; ``changed`` says how, for the first few.
    """

    name: str
    num_documents: int
    num_bytes: int
    num_tokens: int
    num_changed: int
    changed: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TextSummary:
    """A folder of prepared text. Only :func:`prepare_text` fills the fields after ``splits``.

    Documents were repaired where bytes were not UTF-8. Empty ones, files that are no text, and records without a text were
    left out; ``left_out`` names the first few. ``cut_document`` says that there was one document, whose end is held out.
    The rate is that of tokenising alone.
    """

    folder: Path
    splits: tuple[TextSplit, ...]
    num_repaired: int = 0
    num_empty: int = 0
    num_left_out: int = 0
    left_out: tuple[str, ...] = ()
    cut_document: bool = False
    seconds: float = 0.0
    tokens_per_second: float = 0.0


def prepare_text(
    sources: Sequence[str | Path],
    out: Path | str,
    *,
    val: Sequence[str | Path] = (),
    val_fraction: float = 0.005,
    vocab_size: int = 32768,
    tokenizer: Path | str | None = None,
    field: str = "text",
    tokenizer_bytes: int = 200_000_000,
    shard_tokens: int = 100_000_000,
    progress: bool = False,
) -> TextSummary:
    """Train a tokenizer on text, tokenise the text on all cores, and write shards and an index.

    Parameters
    ----------
    sources, val, field
        Files, folders and hub datasets of training text and of held-out text, and the field of a record that holds the
        text: see :func:`attractor.data.text.read_documents`.
    out
        The folder to write. It must not exist.
    val_fraction
        Without ``val``: the share of documents to hold out, from 0 to 0.5, chosen by a hash of the text. Of a single
        document, the end is held out: this share, but at least 10,000 characters, or a tenth of it if that is less.
    vocab_size, tokenizer_bytes
        Entries of the vocabulary, and the amount of text to train it on, in equal parts from all sources.
    tokenizer
        A folder with a tokenizer, or with prepared text, to use instead of training one.
    shard_tokens, progress
        The approximate number of tokens in a file, and whether to draw a progress bar.

    Raises
    ------
    ConfigError, DataError
        For invalid settings, if ``out`` exists or cannot be written, and for text that cannot be read.
    """
    out, start = Path(out), time.perf_counter()
    require_free(out)
    if not sources:
        raise ConfigError("give at least one source: a file, a folder or a dataset such as fineweb-edu.")
    if not 0 <= val_fraction <= 0.5:
        raise ConfigError(f"val_fraction={val_fraction:g}: give a number from 0 to 0.5.")
    for name, value in (("tokenizer_bytes", tokenizer_bytes), ("shard_tokens", shard_tokens)):
        if value < 1:
            raise ConfigError(f"{name}={value}: give a whole number from 1 up.")
    for source in set(map(real_path, sources)) & set(map(real_path, val)):
        raise ConfigError(f"{source}: is both in the sources and in val; leave it in one of them.")
    fraction, total = 0.0 if val else val_fraction, total_bytes([*sources, *val])
    stats = {"train": ReadStats()} | ({"val": ReadStats()} if val or fraction else {})
    train_pairs = _split_off(read_documents(sources, field=field, stats=stats["train"]), fraction)
    val_pairs = (("val", text) for text in read_documents(val, field=field, stats=stats.get("val")))
    with TaskProgress(enabled=progress, lines=True) as bars:
        if tokenizer:
            vocabulary = load_tokenizer(Path(tokenizer))
        else:
            sample = _sample(sources, field, fraction, tokenizer_bytes)
            follow = bars.follow(f"training a tokenizer of {vocab_size} entries")
            vocabulary = train_tokenizer(_follow_documents(sample, follow), vocab_size)
        meter, pairs = _Meter(bars.follow("tokenising"), stats, total), chain(train_pairs, val_pairs)
        prepare(out, pairs, vocabulary, stats=stats, shard_tokens=shard_tokens, advance=meter.advance)
        tokens_per_second = meter.num_tokens / meter.seconds
    return TextSummary(
        folder=out,
        splits=text_splits(out),
        num_repaired=sum(s.num_repaired for s in stats.values()),
        num_empty=sum(s.num_empty for s in stats.values()),
        num_left_out=sum(s.num_left_out for s in stats.values()),
        left_out=tuple(each for s in stats.values() for each in s.left_out),
        cut_document=bool(fraction) and stats["train"].num_documents == 1,
        seconds=time.perf_counter() - start,
        tokens_per_second=tokens_per_second,
    )


class _Meter:
    """Counts what is tokenised, and updates a progress bar."""

    def __init__(self, update: Callable[..., None], stats: Mapping[str, ReadStats], total: int | None) -> None:
        self.num_bytes = self.num_tokens = 0
        self._update, self._stats, self._total, self._start = update, stats, total, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def advance(self, num_bytes: int, num_tokens: int) -> None:
        self.num_bytes += num_bytes
        self.num_tokens += num_tokens
        megabytes = self.num_bytes / 1e6
        note = f"{megabytes:,.0f} MB, {megabytes / self.seconds:.1f} MB/s, {self.num_tokens:,} tokens"
        self._update(sum(s.num_bytes_read for s in self._stats.values()), self._total, note)


def _follow_documents(documents: Iterable[str], update: Callable[..., None]) -> Iterator[str]:
    """Yield documents, and show on a progress bar how many bytes they have."""
    num_bytes = 0
    for text in documents:
        yield text
        num_bytes += len(text.encode())
        update(num_bytes, None, f"{num_bytes / 1e6:,.0f} MB")


def _sample(sources: Sequence[str | Path], field: str, val_fraction: float, num_bytes: int) -> Iterator[str]:
    """Yield training text, the same amount from every source, at most ``num_bytes`` in all."""
    for source in sources:
        left = num_bytes // len(sources)
        for split, text in _split_off(read_documents([source], field=field), val_fraction):
            if split == "val":
                continue
            yield text[:left]
            left -= len(text.encode())
            if left <= 0:
                break


def _split_off(documents: Iterable[str], val_fraction: float) -> Iterator[tuple[str, str]]:
    """Yield pairs (split, document). If no document is held out by chance, the last one is; of a single one, its end."""
    num, last, any_held_out = 0, "", False
    for num, text in enumerate(documents, start=1):
        if num > 1:
            held_out = _is_held_out(last, val_fraction)
            any_held_out |= held_out
            yield "val" if held_out else "train", last
        last = text
    if val_fraction and num == 1:
        yield from _hold_out_end(last, val_fraction)
    elif num:
        yield "val" if val_fraction and (not any_held_out or _is_held_out(last, val_fraction)) else "train", last


def _hold_out_end(text: str, val_fraction: float) -> Iterator[tuple[str, str]]:
    """Yield the training part and the held-out end of a document, or all of a document that is too short for both."""
    size = max(round(val_fraction * len(text)), min(HELD_OUT_CHARACTERS, len(text) // 10))
    cut = len(text) - size
    half = cut + size // 2
    cut = max(text.find("\n", cut, half), 0) or max(text.find(" ", cut, half), 0) or cut  # keep lines, or words, whole
    parts = {"train": text[:cut], "val": text[cut:]}
    yield from parts.items() if all(part.strip() for part in parts.values()) else [("train", text)]


def _is_held_out(text: str, val_fraction: float) -> bool:
    return zlib.crc32(text.encode()) < val_fraction * (1 << 32)


def text_splits(folder: Path) -> tuple[TextSplit, ...]:
    """Return the counts of every split in a folder of prepared text."""
    shards = {split: Shards(folder, split) for split in list_splits(folder)}
    return tuple(
        TextSplit(
            name=name,
            num_documents=s.num_documents,
            num_bytes=s.num_bytes,
            num_tokens=s.num_tokens,
            num_changed=s.num_changed,
            changed=s.changed,
        )
        for name, s in shards.items()
    )
