"""Train a byte-level BPE tokenizer, and use any fast tokenizer on all cores."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from attractor.errors import DataError
from attractor.files import check_model_folder, load_reason

END_OF_TEXT = "<|endoftext|>"  # precedes every document, so it also follows every document but the last

# GPT-4's pattern that splits text into words before merging, with at most two digits, for smaller vocabularies.
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def train_tokenizer(documents: Iterable[str], vocab_size: int = 32768) -> PreTrainedTokenizerFast:
    """Train and return a tokenizer of ``vocab_size`` entries that can encode every byte.

    Raises
    ------
    DataError
        If the vocabulary cannot hold all bytes, or the text is too short to fill it.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise DataError(f"a vocabulary of {vocab_size} cannot hold all bytes; give at least {len(alphabet) + 1}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise DataError(
            f"the text has only {tokenizer.get_vocab_size()} entries in it, not {vocab_size}; "
            "give more text or a smaller vocabulary."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from its folder, from a folder of prepared text, or by its name on the hub."""
    inner = folder / "tokenizer"
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) != 2):  # not owner/name
        raise DataError(f"{folder}: no such folder; give one with a tokenizer or with prepared text.")
    path = inner if inner.is_dir() else folder
    check_model_folder(path, DataError)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # the library raises many classes
        raise DataError(f"{folder}: no tokenizer can be loaded from here ({load_reason(error)}).") from error


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[Any]]:
    """Return a function from texts to objects with ``ids``, which uses all cores and finds no special tokens in texts.

    Raises
    ------
    DataError
        For tokenizers that are not backed by the ``tokenizers`` library.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"{type(tokenizer).__name__}: give a tokenizer with a tokenizer.json.")
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy, because the next lines change it
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True  # <|endoftext|> in a document does not end it
    return lambda texts: own.encode_batch_fast(texts, add_special_tokens=False)  # without offsets


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
