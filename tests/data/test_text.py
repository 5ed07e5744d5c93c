"""Text: documents in, tokens out and back, rows for training, and what each kind of damage says."""

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from attractor.data.text import (
    END_OF_TEXT,
    PackedRows,
    ReadStats,
    Shards,
    fingerprint,
    list_splits,
    load_tokenizer,
    prepare,
    read_documents,
    total_bytes,
    train_tokenizer,
)
from attractor.data.text import documents as documents_module
from attractor.data.text import shards as shards_module
from attractor.data.text import tokenizer as tokenizer_module
from attractor.data.text.tokenizer import Encoder
from attractor.errors import ConfigError, DataError

WORDS = [f"{a}{b}{c}" for a in ("ka", "lo", "mi") for b in ("ra", "ne", "tu") for c in ("s", "n", "")]


def draw(num: int, seed: int = 0) -> list[str]:
    """Documents of 0 to 80 words in lines, with a little of everything that could go wrong."""
    rng = np.random.default_rng(seed)
    odd = [END_OF_TEXT, "naïve 日本語 🙂", "tab\tand\r\nreturn ", "  two  spaces", "12345 + 678", "\x1b\x07"]
    texts = []
    for n in range(num):
        words = list(rng.choice(WORDS, int(rng.integers(1, 80))))
        words.insert(int(rng.integers(len(words))), odd[n % len(odd)])
        texts.append("".join(word + ("\n" if i % 9 == 8 else " ") for i, word in enumerate(words)))
    return texts


DOCUMENTS = draw(60)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(DOCUMENTS, 370)


@pytest.fixture(scope="module")
def encode(tokenizer):
    return Encoder(tokenizer)


@pytest.fixture
def prepared(tokenizer, tmp_path) -> Path:
    """Three shards or more of training documents, and one of held-out ones."""
    out = tmp_path / "prepared"
    prepare(out, {"train": DOCUMENTS, "val": draw(3, seed=1)}, tokenizer, shard_tokens=1000)
    return out


def texts_of(shards: Shards, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The documents in a split, in order."""
    tokens = shards.read(0, shards.num_tokens)
    assert tokens[0] == shards.end_of_text
    begins = np.flatnonzero(tokens == shards.end_of_text)
    return [tokenizer.decode(part[1:]) for part in np.split(tokens, begins[1:])]


# Tokenizer


@given(text=st.text() | st.lists(st.sampled_from([*WORDS, END_OF_TEXT, " ", "\n", "7"])).map("".join))
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(tokenizer, encode, text: str) -> None:
    """Any Unicode text can be encoded and decoded again, and all ids are in the vocabulary."""
    (ids,) = encode([text])
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < 370 for i in ids)


def test_a_tokenizer_is_saved_and_loaded(tokenizer, prepared) -> None:
    """From a folder of prepared text and from the tokenizer's own folder, with the same encoding and fingerprint."""
    for folder in (prepared, prepared / "tokenizer"):
        loaded = load_tokenizer(folder)
        assert loaded(DOCUMENTS)["input_ids"] == tokenizer(DOCUMENTS)["input_ids"]
        assert fingerprint(loaded) == fingerprint(tokenizer) == Shards(prepared).tokenizer
    assert fingerprint(train_tokenizer(DOCUMENTS, 369)) != fingerprint(tokenizer)


def test_frequent_words_become_single_tokens(tokenizer) -> None:
    """Words of the text need about one token each, not one per byte."""
    text = " ".join(WORDS)
    assert len(tokenizer(text)["input_ids"]) < 2 * len(WORDS)
    assert tokenizer(" 2026")["input_ids"] == tokenizer(" ")["input_ids"] + [
        i for pair in ("20", "26") for i in tokenizer(pair)["input_ids"]
    ]  # digits are never merged by more than two


@pytest.mark.parametrize(("vocab_size", "says"), [(256, "at least 257"), (20_000, "the text has only")])
def test_invalid_vocabulary_sizes_are_refused(vocab_size: int, says: str) -> None:
    """Sizes that cannot hold all bytes, or that the text cannot fill, raise a DataError."""
    with pytest.raises(DataError, match=says):
        train_tokenizer(DOCUMENTS, vocab_size)


def test_a_folder_without_a_tokenizer_is_named(tmp_path) -> None:
    """A missing folder, an empty one and a damaged file raise a DataError of one line."""
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    for content in (None, '{"version":'):
        if content:
            (broken / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=r"broken: no tokenizer can be loaded") as caught:
            load_tokenizer(broken)
        assert "\n" not in str(caught.value)


# Documents


def write_jsonl(file: Path, texts: list[str], field: str = "text") -> Path:
    file.write_bytes(b"".join(json.dumps({"id": 1, field: t}).encode() + b"\n" for t in texts))
    return file


def zstandard_frames(data: bytes) -> bytes:
    zstandard = pytest.importorskip("zstandard")
    half = len(data) // 2  # several frames in one file are usual where files are compressed in parallel
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


PACKERS = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard_frames}


@pytest.mark.parametrize("packing", PACKERS)
def test_compressed_files_are_read(packing: str, tmp_path) -> None:
    """Documents are read in order and unchanged, and the bytes read add up to the file's size."""
    lines = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    packed = tmp_path / f"b.jsonl{packing}"
    packed.write_bytes(PACKERS[packing](lines.read_bytes()))
    whole = tmp_path / f"c.txt{packing}"
    whole.write_bytes(PACKERS[packing](b"\xef\xbb\xbf" + DOCUMENTS[1].encode()))
    stats = ReadStats()
    assert list(read_documents([packed, str(whole)], stats=stats)) == [*DOCUMENTS, DOCUMENTS[1]]
    assert (stats.num_documents, stats.num_empty, stats.num_repaired) == (61, 0, 0)
    assert stats.num_bytes_read == total_bytes([packed, whole]) == packed.stat().st_size + whole.stat().st_size


def test_parquet_is_read_by_column(tmp_path) -> None:
    """Several row groups are read in order. For a missing column the nearest name is suggested."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": DOCUMENTS, "n": range(60)}), file, row_group_size=7)
    assert list(read_documents([file], field="content")) == DOCUMENTS
    with pytest.raises(DataError, match="record 1 has no field 'contents'; did you mean 'content'"):
        list(read_documents([file], field="contents"))
    with pytest.raises(DataError, match="record 1: field 'n' holds int, not text"):
        list(read_documents([file], field="n"))


def test_folders_are_read_in_order(tmp_path) -> None:
    """Text files are read in the order of their paths. Hidden and other files are skipped."""
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b/2.txt", "a.md", "c.txt", "image.png", ".git/x.md", ".hidden.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").write_text(" \n")
    stats = ReadStats()
    assert list(read_documents([tmp_path], stats=stats)) == ["a.md", "b/2.txt", "c.txt"]
    assert stats.num_empty == 1


def test_hub_datasets_are_streamed_by_name(monkeypatch) -> None:
    """Short names and owner/name:configuration work. Errors of the library become one line."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return iter([{"text": "one", "id": 1}, {"text": "two", "id": 2}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("fineweb-edu", "owner/name:part-1.0", "owner/name"):
        assert list(read_documents([name])) == ["one", "two"]
        assert total_bytes([name]) is None
    streamed = {"split": "train", "streaming": True}
    assert asked == [
        (("HuggingFaceFW/fineweb-edu",), {"name": "sample-10BT", **streamed}),
        (("owner/name",), {"name": "part-1.0", **streamed}),
        (("owner/name",), {"name": None, **streamed}),
    ]

    def fail(*args, **kwargs):
        raise ConnectionError("no way\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"owner/name \(no such file .*\): cannot be read \(no way to the hub\)"):
        list(read_documents(["owner/name"]))


def test_a_missing_library_is_named(tmp_path, monkeypatch) -> None:
    """The sentence says how to install it."""

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(documents_module, "importlib", SimpleNamespace(import_module=missing))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"parquet files need one more library: pip install"):
        list(read_documents([tmp_path / "a.parquet"]))


def test_bytes_that_are_not_utf8_are_replaced_and_counted(tmp_path) -> None:
    """Documents with invalid UTF-8, surrogates or NUL are repaired, and each is counted once."""
    (tmp_path / "a.txt").write_bytes(b"th\xe9 \xff!")
    (tmp_path / "b.jsonl").write_bytes(
        b'{"text": "th\xe9 \\ud800"}\n\n{"text": "a\\u0000b"}\n{"text": "\\ud83d\\ude42"}\n{"text": ""}\n'
    )
    stats = ReadStats()
    texts = list(read_documents([tmp_path], stats=stats))
    assert texts == ["th\ufffd \ufffd!", "th\ufffd \ufffd", "a\ufffdb", "🙂"]
    assert (stats.num_documents, stats.num_repaired, stats.num_empty) == (4, 3, 1)


GARBLED = {
    "empty.txt": (b"", "holds no text"),
    "blank.jsonl": (b"\n\n", "holds no text"),
    "binary.txt": (b"\x7fELF\0\0", "holds NUL bytes"),
    "wide.md": ("text".encode("utf-16-le"), "holds NUL bytes"),
    "cut.jsonl": (b'{"text": "a"}\n\n{"text": "b\n', "line 3 is not JSON"),
    "deep.jsonl": (b"[" * 100_000, "line 1 is not JSON"),
    "list.jsonl": (b'["a"]\n', "line 1 has no field 'text'; give an object"),
    "field.jsonl": (b'{"texts": "a", "id": 1}\n', "line 1 has no field 'text'; did you mean 'texts'"),
    "null.jsonl": (b'{"text": null}\n', "line 1: field 'text' holds NoneType, not text"),
    "cut.txt.gz": (gzip.compress(b"text" * 99)[:-9], "cannot be read"),
    "cut.txt.xz": (lzma.compress(b"text" * 99)[:-9], "cannot be read"),
    "other.txt.bz2": (b"no bzip2", "cannot be read"),
    "other.txt.zst": (b"no zstandard", "cannot be read"),
    "other.parquet": (b"no parquet", "cannot be read"),
    "image.png": (b"", "cannot read this kind of file"),
}


@pytest.mark.parametrize("name", GARBLED)
def test_files_that_are_not_text_are_refused(name: str, tmp_path) -> None:
    """The sentence names the file and the line."""
    content, says = GARBLED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_documents([tmp_path / name]))
    assert str(tmp_path / name) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_a_byte_order_mark_names_the_encoding(encoding: str, packing: str, tmp_path) -> None:
    """In documents and in lines of JSON; the mark is not part of the text."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in DOCUMENTS)
    (tmp_path / f"a.jsonl{packing}").write_bytes(PACKERS[packing](lines.encode(encoding)))
    (tmp_path / f"b.txt{packing}").write_bytes(PACKERS[packing]("naïve 日本".encode(encoding)))
    stats = ReadStats()
    assert list(read_documents([tmp_path], stats=stats)) == [*DOCUMENTS, "naïve 日本"]
    assert (stats.num_repaired, stats.num_left_out) == (0, 0)


def test_endings_are_read_in_any_case_and_compression_by_content(tmp_path) -> None:
    """Alone and in a folder."""
    names = {"a.TXT": b"one", "b.Jsonl": b'{"text": "two"}', "c.MD.GZ": gzip.compress(b"three")}
    names |= {"d.txt": gzip.compress(b"four"), "e.jsonl": lzma.compress(b'{"text": "five"}')}
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    texts = ["one", "two", "three", "four", "five"]
    assert list(read_documents([tmp_path])) == texts
    assert list(read_documents([tmp_path / name for name in names])) == texts


def test_linked_folders_are_read_once(tmp_path) -> None:
    """Behind two links, and behind one that leads back; what is left out is counted and named."""
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "in" / "a" / "1.txt").write_text("one")
    (tmp_path / "other" / "2.txt").write_text("two")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "twice").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "a" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in" / "image.png").write_bytes(b"")
    stats = ReadStats()
    assert list(read_documents([tmp_path / "in"], stats=stats)) == ["one", "two"]
    assert stats.num_left_out == 4
    for name in ("gone.txt", "image.png", "loop: links to a folder that is read already", "twice: links"):
        assert any(name in each for each in stats.left_out), name


def test_records_without_a_text_are_left_out_and_named(tmp_path) -> None:
    """Null, missing and other types, if some record has a text; a file without any is refused after 1000 records."""
    records = [{"text": None}, {"text": "a"}, {"id": 1}, {"text": 7}, ["b"], {"text": "c"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    stats = ReadStats()
    assert list(read_documents([tmp_path], stats=stats)) == ["a", "c"]
    assert (stats.num_documents, stats.num_left_out) == (2, 4)
    assert [each.split(": line ")[1][0] for each in stats.left_out] == ["1", "3", "4", "5"]
    (tmp_path / "b.jsonl").write_text('{"text": null}\n' * 1000 + "no JSON")
    with pytest.raises(DataError, match=r"b.jsonl: line 1: field 'text' holds NoneType"):
        list(read_documents([tmp_path / "b.jsonl"]))
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "c.parquet")
    assert list(read_documents([tmp_path / "c.parquet"])) == ["a", "b"]


def test_a_compressed_bomb_is_refused(tmp_path, monkeypatch) -> None:
    """The limits of a line and of a document count decompressed bytes, and no more is read."""
    monkeypatch.setattr(documents_module, "MAX_LINE", 1000)
    monkeypatch.setattr(documents_module, "MAX_DOCUMENT", 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + b"a" * 10_000_000))
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(b"a" * 10_000_000))
    with pytest.raises(DataError, match="line 1 has more than 1,000 bytes"):
        list(read_documents([tmp_path / "a.jsonl.gz"]))
    with pytest.raises(DataError, match="one document of more than 1,000 bytes"):
        list(read_documents([tmp_path / "b.txt.xz"]))


def test_all_sources_are_looked_up_before_the_first_is_read(tmp_path) -> None:
    """A missing file is reported at once, with the nearest known name."""
    good = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS)
    for missing in (tmp_path / "b.jsonl", "b.jsonl", "data/b.jsonl", "/b"):
        with pytest.raises(DataError, match=r"b(\.jsonl)?: no such file or folder"):
            next(read_documents([good, missing]))
    with pytest.raises(DataError, match="did you mean 'fineweb-edu'"):
        next(read_documents(["finewebedu"]))
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match=r"no \.jsonl.* file in this folder"):
        next(read_documents([good, tmp_path / "c"]))


# Shards


def test_shards_hold_the_documents(prepared, tokenizer) -> None:
    """Decoded shards are the documents, in order, also if a document contains the end-of-text string."""
    assert list_splits(prepared) == ["train", "val"]
    shards = Shards(prepared)
    assert texts_of(shards, tokenizer) == DOCUMENTS
    assert texts_of(Shards(prepared, "val"), tokenizer) == draw(3, seed=1)
    assert len(list(prepared.glob("train-*.bin"))) >= 3
    assert (shards.num_documents, shards.num_bytes) == (60, sum(len(t.encode()) for t in DOCUMENTS))
    assert (shards.vocab_size, shards.end_of_text) == (370, tokenizer.eos_token_id)
    shards.verify()


def test_a_range_may_span_several_files(prepared) -> None:
    """Every range equals that range of all tokens. Ranges beyond the end raise a DataError."""
    shards = Shards(prepared)
    everything = shards.read(0, shards.num_tokens)
    rng = np.random.default_rng(0)
    for start in rng.integers(0, shards.num_tokens, 50).tolist():
        length = int(rng.integers(0, shards.num_tokens - start + 1))
        np.testing.assert_array_equal(shards.read(start, length), everything[start : start + length])
    with pytest.raises(DataError, match="do not exist"):
        shards.read(shards.num_tokens - 1, 2)


def test_mixed_splits_are_written_and_counts_are_stored(tokenizer, tmp_path) -> None:
    """Pairs of split and document give the same files as one split after another."""
    pairs = [("val" if n % 3 == 0 else "train", text) for n, text in enumerate(DOCUMENTS)]
    seen = [0, 0]

    def advance(num_bytes: int, num_tokens: int) -> None:
        seen[0] += num_bytes
        seen[1] += num_tokens

    stats = {"train": ReadStats(num_empty=5, num_repaired=7)}
    prepare(tmp_path / "a", pairs, tokenizer, stats=stats, advance=advance)
    splits = {name: [t for split, t in pairs if split == name] for name in ("train", "val")}
    prepare(tmp_path / "b", splits, tokenizer)
    for name in splits:
        file = f"{name}-00000.bin"
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    noted = json.loads((tmp_path / "a" / "index.json").read_text())["splits"]
    assert (noted["train"]["num_empty"], noted["train"]["num_repaired"]) == (5, 7)
    assert noted["val"]["num_documents"] == 20
    assert seen == [sum(s[name] for s in noted.values()) for name in ("num_bytes", "num_tokens")]


def test_splitting_long_documents_does_not_change_tokens(tmp_path, monkeypatch) -> None:
    """Small pieces and batches give the tokens of the undivided documents."""
    long = ["\n".join(DOCUMENTS), "\n\n  \n".join(DOCUMENTS[::-1])]
    tokenizer = train_tokenizer(long, 370)
    prepare(tmp_path / "whole", {"train": long}, tokenizer)
    monkeypatch.setattr(tokenizer_module, "PIECE", 100)
    monkeypatch.setattr(tokenizer_module, "_BATCH", 1000)
    assert len(list(Encoder(tokenizer)._pieces(long[0]))) > 50
    prepare(tmp_path / "cut", {"train": long}, tokenizer)
    assert (tmp_path / "cut" / "train-00000.bin").read_bytes() == (tmp_path / "whole" / "train-00000.bin").read_bytes()
    assert Shards(tmp_path / "cut").num_documents == 2


@pytest.mark.parametrize(("vocab_size", "width"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_tokens_take_two_bytes_if_possible(vocab_size: int, width: int, tmp_path) -> None:
    """65536 entries fit into uint16, and one more needs uint32."""
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(vocab_size)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1")
    prepare(tmp_path / "out", {"train": [f"w{vocab_size - 1}"]}, tokenizer)
    assert (tmp_path / "out" / "train-00000.bin").stat().st_size == 2 * width
    assert Shards(tmp_path / "out").read(0, 2).tolist() == [1, vocab_size - 1]


def test_settings_of_a_tokenizer_do_not_cut_documents(prepared, tokenizer, tmp_path) -> None:
    """Truncation and padding are ignored, and are not changed."""
    other = load_tokenizer(prepared)
    other.backend_tokenizer.enable_truncation(4)
    other.backend_tokenizer.enable_padding(length=9)
    prepare(tmp_path / "other", {"train": DOCUMENTS}, other)
    assert texts_of(Shards(tmp_path / "other"), tokenizer) == DOCUMENTS
    assert other.backend_tokenizer.truncation["max_length"] == 4


def test_unsuitable_tokenizers_are_refused(tokenizer, tmp_path) -> None:
    """Without an end-of-text token, documents could not be separated."""
    unwrap_model = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(DataError, match="no end-of-text token"):
        prepare(tmp_path / "out", {"train": DOCUMENTS}, unwrap_model)
    with pytest.raises(ConfigError, match="shard_tokens=0"):
        prepare(tmp_path / "out", {"train": DOCUMENTS}, tokenizer, shard_tokens=0)
    assert list(tmp_path.iterdir()) == []


def interrupted(by: BaseException) -> Iterator[str]:
    yield from DOCUMENTS
    raise by


@pytest.mark.parametrize("by", [KeyboardInterrupt(), DataError("malformed"), RuntimeError("bug")], ids=repr)
def test_an_error_leaves_nothing(by: BaseException, tokenizer, tmp_path, monkeypatch) -> None:
    """An error of the reading is passed on, and no folder is left."""
    monkeypatch.setattr(shards_module, "_BATCH", 1000)
    with pytest.raises(type(by)):
        prepare(tmp_path / "out", {"train": interrupted(by)}, tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_split_is_refused_and_leaves_nothing(tokenizer, tmp_path) -> None:
    """Although this is known only at the end."""
    with pytest.raises(DataError, match="split 'val' holds no text"):
        prepare(tmp_path / "out", {"train": DOCUMENTS, "val": []}, tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused(tokenizer, tmp_path, monkeypatch) -> None:
    """An existing folder or file, a file as parent, and a full disk. Existing files stay."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    for name, says in {"file": "exists already", "folder": "exists already", "file/out": "cannot be written"}.items():
        with pytest.raises(ConfigError, match=f"{name}: {says}"):
            prepare(tmp_path / name, {"train": DOCUMENTS}, tokenizer)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards_module._ShardWriter, "add", full)
    with pytest.raises(ConfigError, match=r"out: cannot be written \(No space left on device\)"):
        prepare(tmp_path / "out", {"train": DOCUMENTS}, tokenizer)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "precious"


def flip(file: Path, position: int, value: int | None = None) -> None:
    data = bytearray(file.read_bytes())
    data[position] = data[position] ^ 1 if value is None else value
    file.write_bytes(data)


def swap(folder: Path) -> None:
    a, b, c = (folder / name for name in ("train-00000.bin", "train-00001.bin", "spare"))
    size = min(a.stat().st_size, b.stat().st_size)
    for file in (a, b):
        os.truncate(file, size)
    index = json.loads((folder / "index.json").read_text())
    train = index["splits"]["train"]
    for shard in train["shards"][:2]:
        shard["num_tokens"] = size // 2  # equal sizes, so that only the content can tell
    train["num_tokens"] = sum(shard["num_tokens"] for shard in train["shards"])
    (folder / "index.json").write_text(json.dumps(index))
    a.rename(c), b.rename(a), c.rename(b)


def in_index(change):
    def damage(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return damage


DAMAGE = {
    "truncated": (lambda f: os.truncate(f / "train-00001.bin", 100), r"train-00001.bin: should hold \d+ bytes and"),
    "missing": (lambda f: (f / "train-00001.bin").unlink(), r"train-00001.bin: cannot be read \(No such file"),
    "swapped": (swap, "train-00000.bin: is not the file that was written"),
    "flipped": (lambda f: flip(f / "train-00001.bin", 7), "train-00001.bin: is not the file that was written"),
    "no index": (lambda f: (f / "index.json").unlink(), "holds no prepared text; prepare a folder with"),
    "no JSON": (lambda f: (f / "index.json").write_text("{"), "index.json: cannot be read as JSON"),
    "binary": (lambda f: (f / "index.json").write_bytes(b"\xff\xfe"), "index.json: cannot be read as JSON"),
    "other index": (lambda f: (f / "index.json").write_text('{"weight_map": {}}'), "not the index of prepared text"),
    "a list": (lambda f: (f / "index.json").write_text("[]"), "holds no JSON object"),
    "no dtype": (in_index(lambda i: i.pop("dtype")), "index.json: is damaged"),
    "odd dtype": (in_index(lambda i: i.update(dtype="O")), "index.json: is damaged"),
    "no vocabulary": (in_index(lambda i: i.update(vocab_size=None)), "index.json: is damaged"),
    "odd shard": (in_index(lambda i: i["splits"]["train"]["shards"][0].pop("file")), "index.json: is damaged"),
    "odd count": (in_index(lambda i: i["splits"]["train"].update(num_tokens="7")), "index.json: is damaged"),
    "wrong sum": (in_index(lambda i: i["splits"]["train"].update(num_tokens=7)), "'train' do not add up"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_at_opening(name: str, prepared) -> None:
    """The error names the file and says what to do."""
    damage, says = DAMAGE[name]
    damage(prepared)
    with pytest.raises(DataError, match=says) as caught:
        Shards(prepared)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_suggests_the_nearest_name(prepared) -> None:
    """In the error."""
    with pytest.raises(DataError, match="no split 'eval'; did you mean 'val'"):
        Shards(prepared, "eval")


def test_damage_after_the_start_is_found_by_verify(prepared, monkeypatch) -> None:
    """Opening compares only the start. Reading finds tokens outside the vocabulary."""
    monkeypatch.setattr(shards_module, "_START", 16)
    tokenizer = load_tokenizer(prepared)
    out = prepared.with_name("again")
    prepare(out, {"train": DOCUMENTS}, tokenizer)
    Shards(out).verify()
    flip(out / "train-00000.bin", 1000)
    shards = Shards(out)
    with pytest.raises(DataError, match=r"train-00000.bin: is not the file that was written"):
        shards.verify()
    flip(out / "train-00000.bin", 1001, 0xFF)
    with pytest.raises(DataError, match=r"token id \d+ lies outside the vocabulary of 370"):
        Shards(out).read(0, 600)


# Rows


def test_an_epoch_has_every_token_once(prepared) -> None:
    """The rows are disjoint ranges of the circular sequence, which leave out less than one row."""
    shards = Shards(prepared)
    rows = PackedRows(shards, 64, seed=3)
    seen = SimpleNamespace(num_tokens=shards.num_tokens, begin_of_text=-1)
    seen.read = lambda start, length: np.arange(start, start + length)  # the place of a token instead of the token
    places = PackedRows(seen, 64, seed=3)
    assert rows.num_rows * 64 <= shards.num_tokens < rows.num_rows * 64 + 64
    everything = shards.read(0, shards.num_tokens)
    for epoch in range(3):
        served = places.batch(epoch * rows.num_rows, rows.num_rows)[0]
        assert len(set(served.reshape(-1).tolist())) == rows.num_rows * 64
        tokens = rows.batch(epoch * rows.num_rows, rows.num_rows)[0]
        np.testing.assert_array_equal(tokens, everything[served])


def test_row_n_depends_only_on_the_seed(prepared) -> None:
    """Any batch size and any start give the same rows. Another seed gives other rows."""
    shards = Shards(prepared)
    tokens, positions = PackedRows(shards, 50, seed=1).batch(0, 300)  # over several epochs
    for size in (1, 7, 100):
        rows = PackedRows(shards, 50, seed=1)
        for first in (195, 0, 93):  # backwards too
            again = rows.batch(first, size)
            torch.testing.assert_close(again[0], tokens[first : first + size])
            torch.testing.assert_close(again[1], positions[first : first + size])
    assert not torch.equal(PackedRows(shards, 50, seed=2).batch(0, 20)[0], tokens[:20])


def test_epochs_differ_in_order_and_offset(prepared) -> None:
    """Few rows of one epoch occur in the next."""
    rows = PackedRows(Shards(prepared), 64)
    first, second = ([tuple(r) for r in rows.batch(e * rows.num_rows, rows.num_rows)[0].tolist()] for e in (0, 1))
    assert first != second
    assert len(set(first) & set(second)) < rows.num_rows / 10


def test_positions_restart_at_documents(prepared) -> None:
    """A position counts from the last end-of-text token, or from the start of the row."""
    shards = Shards(prepared)
    tokens, positions = PackedRows(shards, 97).batch(0, 30)
    assert tokens.dtype == positions.dtype == torch.int64
    assert tokens.shape == positions.shape == (30, 97)
    for row, places in zip(tokens.tolist(), positions.tolist(), strict=True):
        expected = 0
        for n, (token, place) in enumerate(zip(row, places, strict=True)):
            expected = 0 if n == 0 or token == shards.end_of_text else expected + 1
            assert place == expected


def test_invalid_rows_are_refused(prepared) -> None:
    """Rows longer than the text, empty rows, negative seeds and negative rows."""
    shards = Shards(prepared, "val")
    with pytest.raises(DataError, match="do not fill one row"):
        PackedRows(shards, shards.num_tokens + 1)
    for settings_ in ({"length": 0}, {"length": 8, "seed": -1}):
        with pytest.raises(ConfigError, match="PackedRows"):
            PackedRows(shards, **settings_)
    for first, num in ((-1, 2), (0, 0)):
        with pytest.raises(DataError, match="do not exist"):
            PackedRows(shards, 8).batch(first, num)
