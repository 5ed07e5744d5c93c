"""Conversations for tuning: a chat template turns them into tokens, and only the assistant's answers are learnt."""

import json
import re
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attractor.config import suggestion
from attractor.data.text.documents import decode, decompressed
from attractor.errors import DataError
from attractor.files import first_line

ROLES = ("system", "user", "assistant", "tool")
IGNORED = -100  # the label of tokens that are not learnt
HIDDEN = 0x10F000  # the first of the private characters that stand for special tokens in the text of a message
Message = dict[str, str]
Example = tuple[NDArray[np.int64], NDArray[np.int64]]  # tokens and labels, (T,) each


def read_conversations(file: Path) -> Iterator[tuple[str, list[Message]]]:
    """Yield the conversations of a file, one object ``{"messages": [{"role", "content"}, …]}`` a line, and their places.

    The file may be compressed. Raises DataError, with the line, for what is not a conversation that has an answer.
    """
    try:
        with file.open("rb") as raw:
            for number, line in enumerate(decompressed(raw, file), start=1):
                where = f"{file}: line {number}"
                if line.strip():
                    try:
                        record = json.loads(decode(line))
                    except (ValueError, RecursionError) as error:
                        raise DataError(f"{where} is not JSON ({error}).") from error
                    yield where, check_messages(record.get("messages") if isinstance(record, dict) else None, where)
    except (OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read ({first_line(error)}).") from error


def check_messages(messages: Any, where: str) -> list[Message]:
    """Return ``messages`` if they are a conversation with an answer of the assistant. Raises DataError."""
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{where} has no list "messages" of objects with a "role" and a "content".')
    for number, message in enumerate(messages, start=1):
        role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        if role not in ROLES:
            raise DataError(f"{where}: message {number} has the role {role!r}; {suggestion(str(role), ROLES)}")
        if not isinstance(content, str):
            raise DataError(f"{where}: message {number} has a content that is not text.")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles or roles[0] == "assistant":
        reason = "begins with an answer of" if roles[0] == "assistant" else "has no answer of"
        raise DataError(f"{where}: the conversation {reason} the assistant.")
    return messages


def render(tokenizer: Any, messages: list[Any], where: str, *, answer_follows: bool = False) -> str:
    """Return the text of a conversation under the tokenizer's chat template, for :func:`encode_rendered`.

    A special token in a message is text, and would end the message as a token; it is hidden as a private character.
    Raises DataError if there is no template, or it refuses the conversation.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"{where}: the model's tokenizer has no chat template; add the file chat_template.jinja to the model's folder."
        )
    hidden = _replace(messages, _hidden_tokens(tokenizer, len(tokenizer)))
    try:
        return str(tokenizer.apply_chat_template(hidden, tokenize=False, add_generation_prompt=answer_follows))
    except Exception as error:  # a template is a program of its own
        raise DataError(f"{where}: the chat template refuses the conversation ({first_line(error)}).") from error


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text of :func:`render`. Those of the template are special; those of messages are text."""
    ids = list[int]()
    for part, is_split in _parts(tokenizer, text):
        found = tokenizer(part, add_special_tokens=False, split_special_tokens=is_split, verbose=False)
        ids += found["input_ids"]
    return ids


@lru_cache(maxsize=4)
def _hidden_tokens(tokenizer: Any, size: int) -> dict[str, str]:
    """Return every special token of a tokenizer of ``size`` tokens with its private character, the longest first."""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return {token: chr(HIDDEN + n) for n, token in enumerate(sorted(tokens, key=len, reverse=True))}


def _replace(value: Any, texts: dict[str, str]) -> Any:
    """Replace texts in every string of messages, whose content may be a list of parts."""
    if isinstance(value, str):
        for old, new in texts.items():
            value = value.replace(old, new)
    elif isinstance(value, dict):
        return {key: _replace(part, texts) for key, part in value.items()}
    return [_replace(part, texts) for part in value] if isinstance(value, list) else value


def _parts(tokenizer: Any, text: str) -> list[tuple[str, bool]]:
    """Divide the text of :func:`render` into parts, each with whether its special tokens are text.

    It is one part unless a message has special tokens; then every special token of the template is a part of its own.
    """
    hidden = _hidden_tokens(tokenizer, len(tokenizer))
    shown = {private: token for token, private in hidden.items()}
    if not shown.keys() & set(text):
        return [(text, False)]
    parts = re.split(f"({'|'.join(map(re.escape, hidden))})", text)
    return [(_replace(part, shown), part not in hidden) for part in parts if part]


def encode_conversation(tokenizer: Any, messages: list[Message], where: str = "conversation") -> list[Example]:
    """Return tokens and labels of a conversation. Labels are the tokens of answers and of what ends them.

    It is one example if the template shows earlier messages as it showed them first. Some templates do not, and leave out
    earlier reasoning; then there is an example for every answer.
    """
    text, starts, spans = render(tokenizer, messages, where), [], list[tuple[str, str]]()
    for number in [i for i, message in enumerate(messages) if message["role"] == "assistant"]:
        before = render(tokenizer, messages[:number], where, answer_follows=True)
        shown = render(tokenizer, messages[: number + 1], where)
        if not shown.startswith(before):
            raise DataError(
                f"{where}: the chat template does not begin an answer as it asks for one; correct the template."
            )
        starts.append(shown)
        spans.append((before, shown.rstrip()))
    if all(text.startswith(shown) for shown in starts):
        return [_labelled(tokenizer, text, spans)]
    return [_labelled(tokenizer, shown, [span]) for shown, span in zip(starts, spans, strict=True)]


def _labelled(tokenizer: Any, text: str, spans: list[tuple[str, str]]) -> Example:
    """Return the tokens of a text, and as labels those between the texts of each of ``spans``, which ``text`` begins with."""
    ids, offsets, size = list[int](), list[tuple[int, int]](), 0
    for part, is_split in _parts(tokenizer, text):
        found = tokenizer(
            part, add_special_tokens=False, split_special_tokens=is_split, return_offsets_mapping=True, verbose=False
        )
        ids += found["input_ids"]
        offsets += [(size + first, size + last) for first, last in found["offset_mapping"]]
        size += len(part)
    begins, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    is_answer = np.zeros(len(ids), dtype=bool)
    for span in spans:
        first, last = (sum(len(part) for part, _ in _parts(tokenizer, before)) for before in span)
        is_answer |= (begins < last) & (ends > first)
    tokens = np.array(ids, dtype=np.int64)
    return tokens, np.where(is_answer, tokens, IGNORED)


def answers(file: Path, tokenizer: Any, length: int) -> Iterator[tuple[Tensor, int] | None]:
    """Yield the tokens (T,) up to the end of every answer in a file, with the index at which the answer begins.

    None is yielded in place of an answer that ends after ``length`` tokens. Raises DataError as :func:`read_conversations`.
    """
    for where, messages in read_conversations(file):
        for ids, labels in encode_conversation(tokenizer, messages, where):
            is_answer = np.concatenate([[False], labels[1:] != IGNORED, [False]])
            for first, last in np.flatnonzero(is_answer[1:] != is_answer[:-1]).reshape(-1, 2) + 1:
                yield (torch.from_numpy(ids[:last]), int(first)) if last <= length else None


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token that ends an answer under the chat template, if there is one."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "ANSWER"}]
    if not tokenizer.chat_template:
        return None
    after = render(tokenizer, messages, "chat").rpartition("ANSWER")[2].strip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if ids and ids[0] in tokenizer.added_tokens_decoder else None


@dataclass
class ConversationStats:
    """Counts of :class:`ConversationRows`: conversations, their tokens, those learnt, examples cut or left out."""

    num_conversations: int = 0
    num_tokens: int = 0
    num_learnt: int = 0
    num_cut: int = 0
    num_left_out: int = 0


class ConversationRows:
    """Rows of equal length, filled with whole conversations. Row ``n`` of a run depends only on ``seed``.

    Longer conversations are cut, and left out if no answer remains. What no conversation fills is padding.

    Parameters
    ----------
    file
        See :func:`read_conversations`.
    length
        Tokens per row.
    seed
        Seed of the order, which differs between epochs.

    Raises
    ------
    DataError
        For a file or a tokenizer that cannot be used, also if no answer fits into a row.
    """

    def __init__(self, file: Path, tokenizer: Any, length: int, seed: int = 0) -> None:
        self.length, self.seed, self.stats = length, seed, ConversationStats()
        self._examples = list[Example]()
        for where, messages in read_conversations(file):
            self.stats.num_conversations += 1
            for ids, labels in encode_conversation(tokenizer, messages, where):
                self._add(ids[:length].astype(np.int32), labels[:length].astype(np.int32), len(ids) > length)
        if not self._examples:
            raise DataError(f"{file}: holds no conversation with an answer in its first {length} tokens.")
        self._rows = _pack([len(ids) for ids, _ in self._examples], length)
        self.num_rows, self._order = len(self._rows), (-1, np.zeros(0, dtype=np.int64))

    def _add(self, ids: NDArray[Any], labels: NDArray[Any], is_cut: bool) -> None:
        num_learnt = int((labels[1:] != IGNORED).sum())
        self.stats.num_left_out += num_learnt == 0
        if num_learnt:
            self.stats.num_cut += is_cut
            self.stats.num_tokens += len(ids)
            self.stats.num_learnt += num_learnt
            self._examples.append((ids, labels))

    def batch(self, first: int, num: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, positions and labels of rows ``first`` to ``first + num − 1``, (num, length) int64 each.

        Positions restart from 0 at every conversation and at the padding. Labels are −100 outside of answers.
        """
        rows = np.stack([self._row(row) for row in range(first, first + num)])
        tokens, positions, labels = torch.from_numpy(rows).unbind(dim=1)
        return tokens, positions, labels

    def _row(self, row: int) -> NDArray[np.int64]:
        epoch, index = divmod(row, self.num_rows)
        if epoch != self._order[0]:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.num_rows)
        filled = np.zeros((3, self.length), dtype=np.int64)
        filled[2] = IGNORED
        at = 0
        for number in self._rows[self._order[1][index]]:
            ids, labels = self._examples[number]
            end = at + len(ids)
            filled[0, at:end], filled[1, at:end], filled[2, at + 1 : end] = ids, np.arange(len(ids)), labels[1:]
            at = end
        filled[1, at:] = np.arange(self.length - at)
        return filled


def _pack(sizes: list[int], length: int) -> list[list[int]]:
    """Return which examples share a row: each, from long to short, joins the fullest row that has room for it."""
    rows, spaces = list[list[int]](), list[tuple[int, int]]()  # room and number of the rows that have some
    for example in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect_left(spaces, (sizes[example], -1))
        room, row = spaces.pop(at) if at < len(spaces) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(example)
        insort(spaces, (room - sizes[example], row))
    return rows
