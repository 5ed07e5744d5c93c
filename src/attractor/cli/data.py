"""``attractor data``: text becomes a folder of tokens to train on, and such a folder is checked."""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import tyro
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from attractor.cli.puzzles import is_puzzles, mazes, sudoku, verify_puzzles
from attractor.data.text import (
    ReadStats,
    Shards,
    list_splits,
    load_tokenizer,
    read_documents,
    require_new,
    total_bytes,
    train_tokenizer,
)
from attractor.data.text import prepare as write_shards
from attractor.errors import ConfigError, DataError


def prepare(
    sources: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")],
    /,
    out: Path,
    val: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")] = (),
    val_share: float = 0.005,
    vocab_size: int = 32768,
    tokenizer: Path | None = None,
    field: str = "text",
    tokenizer_bytes: int = 200_000_000,
    shard_tokens: int = 100_000_000,
) -> None:
    """Turn text into tokens: learn a vocabulary, tokenise on all cores, write shards and an index.

    Args:
        sources: Files (.jsonl .txt .md, also .xz .gz .bz2 .zst; .parquet), folders, or hub datasets such as fineweb-edu or
            OWNER/NAME:CONFIGURATION.
        out: Folder to write; must not exist.
        val: Sources that are held out. Without them, a share of the documents is.
        val_share: That share, drawn by a hash of the text, so that equal documents stay together; 0 holds nothing out.
        vocab_size: Entries of the vocabulary to learn.
        tokenizer: Folder of a tokenizer, or of prepared text, to use instead of learning one.
        field: Where the text stands in a record.
        tokenizer_bytes: How much text the vocabulary is learnt from, in equal parts from all sources.
        shard_tokens: About how many tokens a file holds.
    """
    _refuse(sources, out, val, val_share, tokenizer_bytes, shard_tokens)
    share = 0.0 if val else val_share
    console = Console()
    begun = time.perf_counter()
    readings = {"train": ReadStats()} | ({"val": ReadStats()} if val else {})
    total = total_bytes([*sources, *val])
    with _Progress(console) as progress:
        if tokenizer:
            vocabulary = load_tokenizer(tokenizer)
        else:
            progress.stage(f"learning {vocab_size} tokens", None)
            sample = _sample(sources, field, share, tokenizer_bytes)
            vocabulary = train_tokenizer(progress.watch(sample), vocab_size)
        progress.stage("tokenising", total, lambda: sum(r.num_read for r in readings.values()))
        pairs = _held_out(read_documents(sources, field=field, reading=readings["train"]), share)
        more = (("val", text) for text in read_documents(val, field=field, reading=readings.get("val")))
        tokenising = time.perf_counter()
        write_shards(
            out,
            (pair for part in (pairs, more) for pair in part),
            vocabulary,
            readings=readings,
            shard_tokens=shard_tokens,
            advance=progress.advance,
        )
    now = time.perf_counter()
    rate = progress.num_tokens / (now - tokenising)
    console.print(_table(out))
    mended, empty = (sum(getattr(r, name) for r in readings.values()) for name in ("num_mended", "num_empty"))
    console.print(
        f"{mended} documents mended (bytes that were no UTF-8), {empty} empty ones left out; "
        f"{now - begun:.0f} s, {rate / 1e6:.2f} million tokens/s.\n"
        f"In {out}/: index.json, tokenizer/, shards.\n"
        f"Next: attractor train language/tiny --data {out}",
        soft_wrap=True,
        highlight=False,
    )


def verify(folder: Path, /) -> None:
    """Read all of a prepared folder, compare checksums, and say what is in it.

    Args:
        folder: As written by attractor data prepare, sudoku or mazes.
    """
    if is_puzzles(folder):
        verify_puzzles(folder, Console())
        Console().print("every byte is as it was written.")
        return
    for split in list_splits(folder):
        Shards(folder, split).verify()
    Console().print(_table(folder))
    Console().print("every byte is as it was written.")


def data(
    command: tyro.conf.OmitArgPrefixes[
        Annotated[Any, tyro.conf.subcommand(name="prepare", constructor=prepare, prefix_name=False)]
        | Annotated[Any, tyro.conf.subcommand(name="verify", constructor=verify, prefix_name=False)]
        | Annotated[Any, tyro.conf.subcommand(name="sudoku", constructor=sudoku, prefix_name=False)]
        | Annotated[Any, tyro.conf.subcommand(name="mazes", constructor=mazes, prefix_name=False)]
    ],
) -> None:
    """Prepare text for training, and check what was prepared; draw puzzles, or take them from others' sets."""


def _refuse(
    sources: tuple[str, ...], out: Path, val: tuple[str, ...], val_share: float, tokenizer_bytes: int, shard_tokens: int
) -> None:
    require_new(out)  # before minutes are spent
    if not sources:
        raise ConfigError("give at least one source: a file, a folder or a dataset such as fineweb-edu.")
    if not 0 <= val_share <= 0.5:
        raise ConfigError(f"--val-share {val_share:g}: give a share from 0 to 0.5.")
    for name, value in (("tokenizer-bytes", tokenizer_bytes), ("shard-tokens", shard_tokens)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: give a whole number from 1 up.")
    for source in {Path(s).resolve() for s in sources} & {Path(s).resolve() for s in val}:
        raise ConfigError(f"{source}: stands both in the sources and in --val; leave it in one of them.")


def _sample(sources: tuple[str, ...], field: str, share: float, num_bytes: int) -> Iterator[str]:
    """Yield training text, equally much from every source, ``num_bytes`` at most."""
    for source in sources:
        left = num_bytes // len(sources)
        for text in read_documents([source], field=field):
            if _is_held_out(text, share):
                continue
            yield text[:left]
            left -= len(text.encode())
            if left <= 0:
                break


def _held_out(documents: Iterable[str], share: float) -> Iterator[tuple[str, str]]:
    """Yield each document behind its split; if chance would hold none out, the last one is."""
    num, last, any_held = 0, "", False
    for num, text in enumerate(documents, start=1):
        if num > 1:
            held = _is_held_out(last, share)
            any_held |= held
            yield "val" if held else "train", last
        last = text
    if share and num == 1:
        raise DataError("the sources hold one document, so none can be held out; give --val SOURCE, or --val-share 0.")
    if num:
        yield "val" if share and (not any_held or _is_held_out(last, share)) else "train", last


def _is_held_out(text: str, share: float) -> bool:
    return zlib.crc32(text.encode()) < share * (1 << 32)


def _table(folder: Path) -> Table:
    view = Table()
    columns = ("split", "documents", "MB of text", "tokens", "bytes per token")
    for column in columns:
        view.add_column(column, justify="right", no_wrap=True)
    for split in list_splits(folder):
        shards = Shards(folder, split)
        figures = (f"{shards.num_documents:,}", f"{shards.num_bytes / 1e6:,.1f}", f"{shards.num_tokens:,}")
        view.add_row(split, *figures, f"{shards.num_bytes / shards.num_tokens:.3f}")
    return view


class _Progress:
    """A bar of the bytes read, and behind it what has been done; plain lines at every tenth where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self.num_bytes = self.num_tokens = 0
        self._console, self._tenth, self._begun = console, 0, time.perf_counter()
        self._title = ""
        self._total: int | None = None
        self._completed: Callable[[], int] = lambda: 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
        )
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=None, line="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def stage(self, title: str, total: int | None, completed: Callable[[], int] = lambda: 0) -> None:
        """Begin another bar; ``total`` is None where nobody knows, and ``completed`` says how much of it is done."""
        self.num_bytes = self.num_tokens = self._tenth = 0
        self._title, self._total, self._completed, self._begun = title, total, completed, time.perf_counter()
        self._bar.reset(self._task, total=total, description=title, line="")

    def watch(self, documents: Iterable[str]) -> Iterator[str]:
        """Pass documents on and count their bytes."""
        for text in documents:
            yield text
            self.advance(len(text.encode()), 0)

    def advance(self, num_bytes: int, num_tokens: int) -> None:
        self.num_bytes += num_bytes
        self.num_tokens += num_tokens
        rate = self.num_bytes / 1e6 / (time.perf_counter() - self._begun)
        line = f"{self.num_bytes / 1e6:,.0f} MB, {rate:.1f} MB/s" + f", {self.num_tokens:,} tokens" * (
            self.num_tokens > 0
        )
        self._bar.update(self._task, completed=self._completed(), line=line)
        if not self._console.is_terminal and self._total and self._completed() * 10 // self._total > self._tenth:
            self._tenth = self._completed() * 10 // self._total
            self._console.print(f"{self._title} {self._tenth * 10}% {line}", soft_wrap=True, highlight=False)
