"""Tokenizers: train a byte-level BPE, load any other, and turn documents into tokens in one way everywhere.

A document begins with the bos token of its tokenizer and ends with its eos token. If the two are the same token, or there
is no bos token, one eos token before each document does both. :func:`begin_token` and :func:`encode` say what precedes a text.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from attractor.errors import AttractorError, ConfigError, DataError
from attractor.files import first_line
from attractor.files.received import check_model_folder, load_reason, quiet

END_OF_TEXT = "<|endoftext|>"  # precedes every document, so it also follows every document but the last

# GPT-4's pattern that splits text into words before merging, with at most two digits, for smaller vocabularies.
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
MAX_VOCAB = (
    10_000_000  # memory for all entries is taken at once, and the library ends the process if there is not enough
)
LONGEST_WORD = 200  # characters of a word that are merged in training, which takes quadratic time

PIECE = 200_000  # characters after which a long document is split, so that memory is bounded and all cores have work
_CONTEXT = 100  # characters on both sides of a split that decide whether it changes the tokens
_NUM_TRIES = 50  # places that are tried, before a split may change tokens
_BATCH = 4_000_000  # characters that are tokenised in one parallel call
_PLACE = re.compile(r"\n(?=\S)|(?<=\w)(?=\W)|(?<=\W)(?=\w)")  # starts of lines and words


def train_tokenizer(documents: Iterable[str], vocab_size: int = 32768) -> PreTrainedTokenizerFast:
    """Train and return a tokenizer of ``vocab_size`` entries that can encode every byte.

    Raises
    ------
    DataError
        If the vocabulary cannot hold all bytes or is too large, or the text is too short to fill it.
    """
    if vocab_size > MAX_VOCAB:
        raise DataError(f"a vocabulary of {vocab_size} is too large; give at most {MAX_VOCAB:,}.")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise DataError(f"a vocabulary of {vocab_size} cannot hold all bytes; give at least {len(alphabet) + 1}.")
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(LONGEST_WORD), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    pieces = (text[i : i + PIECE] for text in documents for i in range(0, len(text), PIECE))
    with _reported("the tokenizer cannot be trained"):
        tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    if tokenizer.get_vocab_size() < vocab_size:
        raise DataError(
            f"the text has only {tokenizer.get_vocab_size()} entries in it, not {vocab_size}; "
            "give more text or a smaller vocabulary."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from its folder, from a folder of prepared text, from a GGUF file, or by its name on the hub."""
    source: dict[str, Any] = {"trust_remote_code": False}
    if folder.suffix == ".gguf":
        folder, source["gguf_file"] = folder.parent, folder.name
    inner = folder / "tokenizer"
    if not folder.exists() and (folder.is_absolute() or len(folder.parts) != 2):  # not owner/name
        raise DataError(f"{folder}: no such folder; give one with a tokenizer or with prepared text.")
    path = inner if inner.is_dir() else folder
    check_model_folder(path, DataError)
    try:
        with _reported("the file is damaged"), quiet():
            return AutoTokenizer.from_pretrained(path, **source)
    except Exception as error:  # the library raises many classes
        raise DataError(f"{folder}: no tokenizer can be loaded from here ({load_reason(error)}).") from error


def begin_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token before every document: bos, or eos for tokenizers without one. Raises ConfigError if both are missing."""
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise ConfigError("the tokenizer has neither a bos_token nor an eos_token to put before a text; set one.")
    return int(first)


def encode(tokenizer: Any, text: str) -> Tensor:
    """Return :func:`begin_token` and the tokens of ``text``, (T,) int64. Special tokens in the text are read as text."""
    if len(text) > PIECE and isinstance(tokenizer, PreTrainedTokenizerFast):
        ids: Any = Encoder(tokenizer)([text])[0]
    else:
        with _reported("the text cannot be tokenised"):
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return torch.cat([torch.tensor([begin_token(tokenizer)]), torch.as_tensor(np.asarray(ids, dtype=np.int64))])


def decode(tokenizer: Any, ids: Any) -> str:
    """Return the text of tokens without special tokens in it. Nothing else is cleaned up."""
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


class Encoder:
    """Turns documents into tokens on all cores. No special tokens are found in them or added.

    Long documents are split where that does not change their tokens: the text around a place must have the same tokens with
    the split and without it. Only after 50 such places in vain, as in a word of 200,000 characters, tokens may differ there.

    Attributes
    ----------
    is_lossless
        Whether every text is known to survive :func:`decode`: bytes are the alphabet, and nothing is normalised.

    Raises
    ------
    DataError
        For tokenizers that are not backed by the ``tokenizers`` library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise DataError(f"{type(tokenizer).__name__}: give a tokenizer with a tokenizer.json.")
        self._tokenizer, settings = tokenizer, json.loads(tokenizer.backend_tokenizer.to_str())
        self._first, self._next = _backend(settings), _backend(_without_prefix(settings))
        self.is_lossless = _is_lossless(settings)

    def __call__(self, documents: list[str]) -> list[NDArray[np.uint32]]:
        """Return the tokens of each document, without those that begin and end it."""
        parts: list[list[NDArray[np.uint32]]] = [[] for _ in documents]
        batch: list[tuple[int, bool, str]] = []
        size = 0
        for number, document in enumerate(documents):
            for piece, is_first in self._pieces(document):
                batch.append((number, is_first, piece))
                size += len(piece)
                if size >= _BATCH:
                    self._encode(batch, parts)
                    batch, size = [], 0
        self._encode(batch, parts)
        return [ids[0] if len(ids) == 1 else np.concatenate(ids) for ids in parts]

    def changes(self, text: str, ids: NDArray[Any]) -> str:
        """Return how the decoded tokens differ from ``text``, or an empty string if they do not."""
        if self.is_lossless or (found := decode(self._tokenizer, ids)) == text:
            return ""
        at = next((i for i, (a, b) in enumerate(zip(text, found, strict=False)) if a != b), min(len(text), len(found)))
        unknown = self._tokenizer.unk_token_id
        reason = (
            "it has no token for a character"
            if unknown is not None and unknown in ids
            else "it normalises spaces or letters"
        )
        return f"{text[at : at + 20]!r} becomes {found[at : at + 20]!r} at character {at + 1}, because {reason}"

    def _encode(self, batch: list[tuple[int, bool, str]], parts: list[list[NDArray[np.uint32]]]) -> None:
        """Append the tokens of each piece of ``batch`` to the parts of its document."""
        found: dict[int, NDArray[np.uint32]] = {}
        for backend, first in ((self._first, True), (self._next, False)):
            chosen = [index for index, (_, is_first, _) in enumerate(batch) if is_first is first]
            encodings = _ids(backend, [batch[index][2] for index in chosen])
            found |= {index: np.array(ids, dtype=np.uint32) for index, ids in zip(chosen, encodings, strict=True)}
        for index, (number, _, _) in enumerate(batch):
            parts[number].append(found[index])

    def _pieces(self, document: str) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of a document, and whether each is the first."""
        begin = 0
        while len(document) - begin > 2 * PIECE:
            end = self._place(document, begin + PIECE)
            yield document[begin:end], begin == 0
            begin = end
        yield document[begin:], begin == 0

    def _place(self, document: str, start: int) -> int:
        """Return where to split a document, from ``start`` on."""
        for place in islice(_PLACE.finditer(document, start, start + PIECE), _NUM_TRIES):
            at = place.end()
            left, right = document[max(at - _CONTEXT, 0) : at], document[at : at + _CONTEXT]
            both, *apart = _ids(self._next, [left + right, left, right])
            if both == [*apart[0], *apart[1]]:
                return at
        return start + PIECE


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the vocabulary."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def _ids(backend: Tokenizer, texts: list[str]) -> list[list[int]]:
    with _reported("the text cannot be tokenised"):
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _backend(settings: dict[str, Any]) -> Tokenizer:
    """Return a tokenizer of its own, which cuts and pads nothing, and for which <|endoftext|> in a text is text."""
    backend = Tokenizer.from_str(json.dumps(settings | {"truncation": None, "padding": None}))
    backend.encode_special_tokens = True
    return backend


def _without_prefix(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a tokenizer that puts no space before a text, for all pieces of a document but the first."""

    def change(part: Any) -> Any:
        if isinstance(part, list):
            return [each for each in map(change, part) if each is not None]
        if not isinstance(part, dict):
            return part
        if part.get("type") == "Prepend":
            return None
        fixed = {"add_prefix_space": False, "prepend_scheme": "never"}
        return {name: fixed.get(name, change(value)) for name, value in part.items()}

    return settings | {name: change(settings[name]) for name in ("normalizer", "pre_tokenizer")}


def _is_lossless(settings: dict[str, Any]) -> bool:
    steps = settings["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return (
        settings["normalizer"] is None
        and (settings["decoder"] or {}).get("type") == "ByteLevel"
        and settings["model"]["type"] == "BPE"
        and set(alphabet) <= settings["model"]["vocab"].keys()
        and any(step.get("type") == "ByteLevel" for step in steps)
        and all(not step.get("add_prefix_space") and step.get("behavior") != "Removed" for step in steps)
        and all(token["special"] for token in settings["added_tokens"])
    )


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn every error of the tokenizers library into a DataError: a panic, which is no Exception, and damaged settings."""
    try:
        yield
    except (AttractorError, OSError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{what}, because the tokenizers library failed ({first_line(error)}).") from error
