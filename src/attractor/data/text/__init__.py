"""Text to training rows: documents, a byte-level BPE tokenizer, memory-mapped shards, packed rows."""

from attractor.data.text.documents import Reading, read_documents, total_bytes
from attractor.data.text.rows import PackedRows
from attractor.data.text.shards import Shards, list_splits, prepare, require_new
from attractor.data.text.tokenizer import END_OF_TEXT, fingerprint, load_tokenizer, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "PackedRows",
    "Reading",
    "Shards",
    "fingerprint",
    "list_splits",
    "load_tokenizer",
    "prepare",
    "read_documents",
    "require_new",
    "total_bytes",
    "train_tokenizer",
]
