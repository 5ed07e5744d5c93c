"""Text to training rows: documents, a byte-level BPE tokenizer, memory-mapped shards, packed rows; and conversations."""

from attractor.errors import requires_extra

with requires_extra("language"):
    from attractor.data.text.conversations import ConversationRows, answers, encode_rendered, end_of_turn, render
    from attractor.data.text.documents import ReadStats, read_documents, total_bytes
    from attractor.data.text.held_out import read_held_out
    from attractor.data.text.rows import PackedRows
    from attractor.data.text.shards import Shards, list_splits, prepare
    from attractor.data.text.tokenizer import END_OF_TEXT, encode, fingerprint, load_tokenizer, train_tokenizer

__all__ = [
    "END_OF_TEXT",
    "ConversationRows",
    "PackedRows",
    "ReadStats",
    "Shards",
    "answers",
    "encode",
    "encode_rendered",
    "end_of_turn",
    "fingerprint",
    "list_splits",
    "load_tokenizer",
    "prepare",
    "read_documents",
    "read_held_out",
    "render",
    "total_bytes",
    "train_tokenizer",
]
