"""Text to training rows: documents, a byte-level BPE tokenizer, memory-mapped shards, packed rows."""

from attractor.data.text.documents import Reading, read_documents
from attractor.data.text.rows import PackedRows
from attractor.data.text.shards import Shards, prepare
from attractor.data.text.tokenizer import END_OF_TEXT, load_tokenizer, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "PackedRows",
    "Reading",
    "Shards",
    "load_tokenizer",
    "prepare",
    "read_documents",
    "train_tokenizer",
]
