"""Tokenizers of others: what precedes a document, which text survives, and long documents in bounded memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from attractor.data.text import PackedRows, Shards, encode, prepare, read_held_out, train_tokenizer
from attractor.data.text import tokenizer as tokenizer_module
from attractor.data.text.tokenizer import Encoder
from attractor.errors import ConfigError, DataError

TEXTS = ["the sea and the moon", "The night, the town", "  two spaces\n\nand lines\n", "naïve 日本 🙂", " the sea"] * 3
LINES = "\n".join(f"the sea {n} and  the moon's town\n\n  of night" for n in range(60))
SPECIAL = ["<s>", "</s>", "<unk>"]
BYTES = [f"<0x{n:02X}>" for n in range(256)]


def fast(raw: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    special = {"bos_token": "<s>", "eos_token": "</s>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def byte_level(*, add_prefix_space: bool = False, normalizer=None) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    raw.decoder = decoders.ByteLevel()
    if normalizer is not None:
        raw.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator([*TEXTS, LINES], trainer)
    return raw


def llama() -> Tokenizer:
    """SentencePiece as in Llama 1 and 2: a space is put before the text, and bytes are the last resort."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL, *BYTES], limit_alphabet=40, max_token_length=8, show_progress=False
    )
    raw.train_from_iterator([text.replace("\n", "") for text in TEXTS], trainer)
    return raw


def unigram(byte_fallback: bool = True) -> Tokenizer:
    pieces = ["▁the", "▁", "the", "sea", "moon", "and", *"abcdefghijklmnopqrstuvwxyz0123456789.,'\n", "▁s", "▁▁"]
    extra = BYTES if byte_fallback else []
    vocabulary = [(token, 0.0) for token in [*SPECIAL, *extra]] + [(p, -float(len(pieces))) for p in pieces]
    raw = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=byte_fallback))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace(prepend_scheme="first")]
    raw.decoder = decoders.Sequence(steps if byte_fallback else steps[2:])
    raw.add_special_tokens(SPECIAL)
    return raw


LOSSLESS = {
    "GPT-2": lambda: byte_level(),
    "Llama": llama,
}
CHANGING = {
    "prefix space": (lambda: byte_level(add_prefix_space=True), "normalises spaces or letters", 9),
    "lower case": (lambda: byte_level(normalizer=normalizers.Lowercase()), "normalises spaces or letters", 3),
    "no bytes": (lambda: unigram(byte_fallback=False), "has no token for a character", 12),
}


@pytest.mark.parametrize("name", [*LOSSLESS, *CHANGING])
def test_a_document_begins_in_the_same_way_everywhere(name: str, tmp_path) -> None:
    """With bos in training, evaluation and generation; it ends with eos, and positions restart at its beginning."""
    tokenizer = fast((LOSSLESS | {n: c[0] for n, c in CHANGING.items()})[name]())
    prepare(tmp_path / "out", {"train": TEXTS}, tokenizer)
    shards = Shards(tmp_path / "out")
    tokens = shards.read(0, shards.num_tokens)
    assert (shards.begin_of_text, shards.end_of_text) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    begins = np.flatnonzero(tokens == shards.begin_of_text)
    assert len(begins) == len(TEXTS)
    for text, document in zip(TEXTS, np.split(tokens, begins[1:]), strict=True):
        assert document[-1] == tokenizer.eos_token_id
        assert document[:-1].tolist() == encode(tokenizer, text).tolist()
    rows, positions = PackedRows(shards, 20).batch(0, 3)
    assert (positions[rows == shards.begin_of_text] == 0).all()
    assert (positions[:, 1:][rows[:, 1:] == shards.end_of_text] > 0).all()


def test_a_tokenizer_without_bos_begins_documents_with_eos(tmp_path) -> None:
    """As one with a single token for both does. Without both there is an error."""
    raw = byte_level()
    for special in ({"bos_token": None}, {"bos_token": "</s>"}):
        tokenizer = fast(raw, **special)
        out = tmp_path / str(special["bos_token"])
        prepare(out, {"train": TEXTS}, tokenizer)
        shards = Shards(out)
        assert shards.begin_of_text == shards.end_of_text == 1 == encode(tokenizer, "a")[0]
        assert (shards.read(0, shards.num_tokens) == 1).sum() == len(TEXTS)
    with pytest.raises(ConfigError, match="neither a bos_token nor an eos_token"):
        encode(fast(raw, bos_token=None, eos_token=None), "a")


@pytest.mark.parametrize("name", LOSSLESS)
def test_text_survives(name: str, tmp_path) -> None:
    """Byte for byte, although some tokenizers put a space before it."""
    prepare(tmp_path / "out", {"train": TEXTS[:5], "val": TEXTS}, fast(LOSSLESS[name]()))
    assert list(read_held_out((tmp_path / "out",))) == TEXTS
    assert Shards(tmp_path / "out", "val").num_changed == 0


@pytest.mark.parametrize("name", CHANGING)
def test_changed_documents_are_counted_and_held_out_text_is_kept(name: str, tmp_path) -> None:
    """In the index with the reason. Evaluation reads the original text, so that bits per byte count its bytes."""
    make, reason, num_changed = CHANGING[name]
    prepare(tmp_path / "out", {"train": TEXTS, "val": TEXTS}, fast(make(), unk_token="<unk>"))
    for split in ("train", "val"):
        shards = Shards(tmp_path / "out", split)
        assert shards.num_changed == num_changed
        assert len(shards.changed) == min(num_changed, 5)
        assert any(reason in each for each in shards.changed)
    noted = json.loads((tmp_path / "out" / "index.json").read_text())["splits"]["train"]
    assert noted["num_changed"] == num_changed
    assert list(read_held_out((tmp_path / "out",))) == TEXTS


def test_added_tokens_in_a_text_are_text(tmp_path) -> None:
    """Special ones are read as text; others that swallow spaces change the text, which is counted."""
    raw = byte_level()
    raw.add_tokens([AddedToken("sea", lstrip=True, rstrip=True)])
    texts = ["</s> and <s> the moon", "the sea and"]
    prepare(tmp_path / "out", {"val": texts}, fast(raw))
    shards = Shards(tmp_path / "out", "val")
    assert shards.num_documents == (shards.read(0, shards.num_tokens) == shards.begin_of_text).sum() == 2
    assert shards.num_changed <= 1
    assert list(read_held_out((tmp_path / "out",))) == texts


@pytest.mark.parametrize("name", [*LOSSLESS, "ours", "Unigram", "prefix space", "lower case"])
def test_long_documents_have_the_tokens_of_the_undivided_text(name: str, monkeypatch) -> None:
    """For every tokenizer, whether it merges lines, prepends a space, or looks ahead."""
    makers = LOSSLESS | {n: c[0] for n, c in CHANGING.items()} | {"Unigram": unigram}
    tokenizer = train_tokenizer([LINES], 290) if name == "ours" else fast(makers[name]())
    (expected,) = Encoder(tokenizer)([LINES])
    monkeypatch.setattr(tokenizer_module, "PIECE", 150)
    monkeypatch.setattr(tokenizer_module, "_BATCH", 1000)
    cut = Encoder(tokenizer)
    assert len(list(cut._pieces(LINES))) > 10
    assert cut([LINES])[0].tolist() == expected.tolist()
    assert encode(tokenizer, LINES)[1:].tolist() == expected.tolist()


@pytest.mark.parametrize(
    "text", [" " * 2_000_000, "a" * 2_000_000, "word " * 400_000, "語" * 700_000], ids=lambda t: t[:2]
)
def test_very_long_lines_survive(text: str) -> None:
    """Spaces, a word and a line of millions of characters: in seconds, byte for byte, also to train on."""
    tokenizer = train_tokenizer([text, *TEXTS], 260)
    (ids,) = Encoder(tokenizer)([text])
    assert tokenizer.decode(ids) == text
    assert torch.equal(encode(tokenizer, text)[1:], torch.from_numpy(ids.astype(np.int64)))


def test_a_panic_of_the_library_is_one_sentence(monkeypatch) -> None:
    """It is no Exception, so that only its name tells it."""
    panic = type("PanicException", (BaseException,), {})

    def fail(*args, **kwargs):
        raise panic("called `Option::unwrap()`\non a `None` value")

    tokenizer = fast(byte_level())
    monkeypatch.setattr(tokenizer_module.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(DataError, match="no tokenizer can be loaded") as caught:
        tokenizer_module.load_tokenizer(Path("/"))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(
        tokenizer_module.Tokenizer, "from_str", lambda text: type("T", (), {"encode_batch_fast": fail})()
    )
    with pytest.raises(DataError, match="the text cannot be tokenised"):
        Encoder(tokenizer)(["a"])
