"""What commands print: lines and tables. Foreign text, such as names of files, is escaped and is never markup."""

import io
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from attractor.errors import printable


def say(*lines: str) -> None:
    """Print lines. They are not folded, so that paths and commands can be copied."""
    for line in lines:
        print(printable(line))


def make_table(columns: tuple[str, ...], *, title: str | None = None, simple: bool = False, **settings: Any) -> Table:
    """Return an empty table with columns aligned to the right."""
    style: dict[str, Any] = {"box": box.SIMPLE_HEAD, "pad_edge": False} if simple else {}
    table = Table(title=title, title_justify="left", **style, **settings)
    for column in columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def add_row(table: Table, *cells: object) -> None:
    """Add a row of foreign text to a table."""
    table.add_row(*(Text(printable(cell)) for cell in cells))


def show(table: Table) -> None:
    """Print a table in full, also one that is wider than the terminal."""
    console = Console()
    width = Measurement.get(console, console.options.update(width=10_000), table).maximum
    Console(width=max(console.width, width)).print(table)


def show_search(figures: dict[str, Any]) -> None:
    """Print the accuracy of puzzles by rating, with 95 % intervals, and the figures of a search."""
    if rows := figures.get("by_rating"):
        ways = [way for way in ("one_start", "restarts", "search") if way in rows[0]]
        table = make_table(("rating", "puzzles", *(way.replace("_", " ") for way in ways)), simple=True)
        for row in rows:
            end = " and more" if row["below"] is None else f" to {row['below']:g}"
            add_row(table, f"{row['from']:g}{end}", row["num_puzzles"], *(_percent(row[way]) for way in ways))
        show(table)
    if found := figures.get("search"):
        e = found["evaluations"]
        say(
            f"search: {_percent(found)} %; evaluations per puzzle: mean {e['mean']:.0f}, median {e['median']:.0f}, "
            f"90 % below {e['quantile_90']:.0f}, most {e['max']:.0f}; guesses: mean {found['guesses']:.1f}"
        )


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['exact']:.1f} ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


class PrintableStream(io.TextIOBase):
    """Escapes what is written to a stream: usage errors repeat arguments, and names of files, as they are."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text, keep="\n\t"))


def make_streamer(tokenizer: Any) -> Any:
    """Return a streamer that prints tokens as they come. Escape sequences in them do not reach the terminal."""
    from transformers import TextStreamer

    class PrintableStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text, keep="\n\t"), stream_end=stream_end)

    return PrintableStreamer(tokenizer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
