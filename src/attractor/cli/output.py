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


class PrintableStream(io.TextIOBase):
    """Escapes what is written to a stream: usage errors repeat arguments, and names of files, as they are."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text, keep="\n\t"))


def make_streamer(tokenizer: Any, *, skip_prompt: bool = False) -> Any:
    """Return a streamer that prints tokens as they come. Escape sequences in them do not reach the terminal."""
    from transformers import TextStreamer

    class PrintableStreamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text, keep="\n\t"), stream_end=stream_end)

    settings = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return PrintableStreamer(tokenizer, skip_prompt=skip_prompt, **settings)


def describe_generation(result: Any) -> str:
    """Return the tokens of a :class:`attractor.experiment.generation.Generation`, their evaluations and their time."""
    solved = "" if result.evaluations is None else f", {result.evaluations:.1f} evaluations per token"
    full = " (the model's context is full)" if result.is_context_full else ""
    return f"{result.num_tokens} tokens in {result.seconds:.1f} s{solved}{full}"
