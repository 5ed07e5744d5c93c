"""``attractor data``: prepare text or puzzles for training, and verify a prepared folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from attractor.cli.arc import arc
from attractor.cli.options import checked
from attractor.cli.output import add_row, make_table, say, show
from attractor.cli.puzzles import mazes, print_puzzles, sudoku

if TYPE_CHECKING:
    from attractor.experiment.prepare import TextSummary


@checked
def prepare(
    sources: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")],
    /,
    out: Path,
    val: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")] = (),
    val_fraction: float = 0.005,
    vocab_size: int = 32768,
    tokenizer: Path | None = None,
    field: str = "text",
    tokenizer_bytes: int = 200_000_000,
    shard_tokens: int = 100_000_000,
) -> None:
    """Turn text into tokens: train a tokenizer, tokenise on all cores, write shards and an index.

    Args:
        sources: Files (.jsonl .txt .md, also .xz .gz .bz2 .zst; .parquet), folders, or hub datasets such as fineweb-edu
            or OWNER/NAME:CONFIGURATION.
        out: The folder to write; it must not exist.
        val: Sources of held-out text. Without them, a share of the documents is held out.
        val_fraction: That share. A hash of the text decides, so that equal documents are in the same split; of a single
            document the end is held out. 0 holds nothing out.
        vocab_size: Entries of the vocabulary.
        tokenizer: A folder with a tokenizer, or with prepared text, to use instead of training one.
        field: The field of a record that holds the text.
        tokenizer_bytes: The amount of text to train the tokenizer on, in equal parts from all sources.
        shard_tokens: The approximate number of tokens in a file.
    """
    options = locals()  # every option by its name
    from attractor.experiment.prepare import prepare_text

    summary = prepare_text(**options, progress=True)
    _print_text(summary)
    changed = sum(split.num_changed for split in summary.splits)
    for number, what, names in (
        (summary.num_left_out, "files or records without text were left out", summary.left_out),
        (changed, "documents are not given back by their tokens", [c for s in summary.splits for c in s.changed]),
    ):
        if number:
            say(f"{number} {what}:", *(f"  {name}" for name in names), *(["  …"] if number > len(names) else []))
    say(
        f"{summary.num_repaired} documents repaired (bytes that were not UTF-8), {summary.num_empty} empty ones left out; "
        f"{summary.seconds:.0f} s, {summary.tokens_per_second / 1e6:.2f} million tokens/s.",
        f"In {out}/: index.json, tokenizer/, shards.",
        *(["The sources hold one document; its end is held out."] if summary.cut_document else []),
        f"Next: {_next_command(tokenizer, out)}",
    )


def _next_command(tokenizer: Path | None, out: Path) -> str:
    """Return the command that trains on the text: from the model whose tokenizer was used, or from scratch."""
    from attractor.errors import DataError
    from attractor.files import read_json

    file = Path() if tokenizer is None else tokenizer / "config.json"
    kind = read_json(file, DataError).get("model_type") if file.is_file() else None
    if kind in ("llama", "mistral", "qwen2", "qwen3"):
        retrofit = f"attractor retrofit {tokenizer} model, and then: "
        return f"{retrofit}attractor train language/retrofit --init model --data {out}"
    return f"attractor train {f'language/retrofit --init {tokenizer}' if kind else 'language/tiny'} --data {out}"


@checked
def verify(folder: Path, /) -> None:
    """Read a prepared folder completely, compare checksums, and print a summary.

    Args:
        folder: A folder written by attractor data prepare, sudoku, mazes or arc.
    """
    from attractor.experiment.prepare import TextSummary, verify_data

    summary = verify_data(folder)
    if isinstance(summary, TextSummary):
        _print_text(summary)
    else:
        print_puzzles(summary)
    if (folder / "checksums.json").exists():
        print("All checksums match.")
    else:
        print(
            "All checksums match, but index.json and the tokenizer have none; prepare the data again to have them too."
        )


def data(
    command: tyro.conf.OmitArgPrefixes[
        Annotated[Any, tyro.conf.subcommand(name="prepare", constructor=prepare, prefix_name=False)]
        | Annotated[Any, tyro.conf.subcommand(name="verify", constructor=verify, prefix_name=False)]
        | Annotated[Any, tyro.conf.subcommand(name="sudoku", constructor=sudoku, prefix_name=False)]
        | Annotated[Any, tyro.conf.subcommand(name="mazes", constructor=mazes, prefix_name=False)]
        | Annotated[Any, tyro.conf.subcommand(name="arc", constructor=arc, prefix_name=False)]
    ],
) -> None:
    """Prepare text or puzzles for training, and verify a prepared folder."""


def _print_text(summary: "TextSummary") -> None:
    view = make_table(("split", "documents", "MB of text", "tokens", "bytes per token"))
    for split in summary.splits:
        figures = (f"{split.num_documents:,}", f"{split.num_bytes / 1e6:,.1f}", f"{split.num_tokens:,}")
        add_row(view, split.name, *figures, f"{split.num_bytes / split.num_tokens:.3f}")
    show(view)
