"""Read held-out documents: from files, folders, and the split ``val`` of prepared folders."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attractor.data.text.documents import ReadStats, read_documents
from attractor.data.text.shards import ORIGINALS, Shards
from attractor.data.text.tokenizer import decode, load_tokenizer
from attractor.errors import DataError
from attractor.files import read_json


def read_held_out(paths: tuple[Path, ...], field: str = "text", stats: ReadStats | None = None) -> Iterator[str]:
    """Yield all documents of files and folders, and those of the split ``val`` of prepared folders. Update ``stats``."""
    for path in paths:
        if (path / "index.json").is_file():
            yield from _prepared(path)
        else:
            yield from read_documents([path], field=field, stats=stats)


def _prepared(folder: Path) -> Iterator[str]:
    """Yield the documents as text, because the evaluated model may have another tokenizer."""
    shards, tokenizer, file = Shards(folder, "val"), load_tokenizer(folder / "tokenizer"), folder / ORIGINALS
    originals = read_json(file, DataError, advice="prepare the text again") if shards.num_changed else {}
    tokens = shards.read(0, shards.num_tokens)
    for number, document in enumerate(np.split(tokens, np.flatnonzero(tokens == shards.begin_of_text)[1:])):
        is_text = (document != shards.begin_of_text) & (document != shards.end_of_text)
        yield originals[str(number)] if str(number) in originals else decode(tokenizer, document[is_text])
