"""Read held-out documents: from files, folders, and the split ``val`` of prepared folders."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attractor.data.text.documents import read_documents
from attractor.data.text.shards import Shards
from attractor.data.text.tokenizer import load_tokenizer


def read_held_out(paths: tuple[Path, ...], field: str = "text") -> Iterator[str]:
    """Yield all documents of files and folders, and those of the split ``val`` of prepared folders."""
    for path in paths:
        if (path / "index.json").is_file():
            yield from _prepared(path)
        else:
            yield from read_documents([path], field=field)


def _prepared(folder: Path) -> Iterator[str]:
    """Yield the documents as text, because the evaluated model may have another tokenizer."""
    shards, tokenizer = Shards(folder, "val"), load_tokenizer(folder / "tokenizer")
    tokens = shards.read(0, shards.num_tokens)
    for document in np.split(tokens, np.flatnonzero(tokens == shards.end_of_text)):
        text = tokenizer.decode(document[document != shards.end_of_text], clean_up_tokenization_spaces=False)
        if text:
            yield str(text)
