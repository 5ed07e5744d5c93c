"""A byte-level BPE tokenizer, trained on the text at hand; and any fast tokenizer at full speed."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from attractor.errors import DataError

END_OF_TEXT = "<|endoftext|>"  # stands before every document, and so also after it

# GPT-4's way to cut text into words before merging, with numbers in twos, which suits vocabularies of this size.
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def train_tokenizer(documents: Iterable[str], vocab_size: int = 32768) -> PreTrainedTokenizerFast:
    """Return a tokenizer of ``vocab_size`` entries; no byte is ever unknown to it.

    Raises
    ------
    DataError
        When the vocabulary cannot hold all bytes, or the text is too short to fill it.
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
    """Load the tokenizer that lies in ``folder``, ours or any other, in a folder of prepared text, or under a name on the hub."""
    inner = folder / "tokenizer"
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) != 2):  # no owner/name either
        raise DataError(f"{folder}: no such folder; give one with a tokenizer or with prepared text.")
    try:
        return AutoTokenizer.from_pretrained(inner if inner.is_dir() else folder)
    except Exception as error:  # of many kinds: the library parses whatever lies there
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise DataError(f"{folder}: no tokenizer can be loaded from here ({reason}).") from error


def encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[Any]]:
    """Return a function from texts to objects with ``ids``, on all cores, that never finds a special token in a text.

    Raises
    ------
    DataError
        For tokenizers that are not backed by the ``tokenizers`` library.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(f"{type(tokenizer).__name__}: give a tokenizer with a tokenizer.json.")
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy, as these are settings of the object
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = True  # a document that speaks of <|endoftext|> does not end there
    return lambda texts: own.encode_batch_fast(texts, add_special_tokens=False)  # no offsets, no wrapper


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a digest by which equal vocabularies are known."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]
