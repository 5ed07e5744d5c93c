"""``attractor data``: text becomes tokens, what is held out stays out, and a mistake is one sentence and leaves
nothing.
"""

import json
import lzma
from pathlib import Path

import pytest
import tyro
from tokenizers import normalizers

from attractor.cli.data import data
from attractor.data.text import Shards, load_tokenizer
from attractor.errors import AttractorError, ConfigError, DataError
from attractor.experiment.prepare import prepare_text, text, verify_data

TEXTS = [f"Chapter {n}. " + " ".join(f"w{(n * k) % 97}ab" for k in range(1, 60)) + "\n" for n in range(400)]


def attractor(*arguments: str) -> None:
    """Run the group as main does."""
    tyro.extras.subcommand_cli_from_dict({"data": data}, args=["data", *arguments])


def jsonl(file: Path, texts: list[str], field: str = "text") -> str:
    file.write_bytes(lzma.compress(b"".join(json.dumps({field: t}).encode() + b"\n" for t in texts)))
    return str(file)


@pytest.fixture
def source(tmp_path) -> str:
    return jsonl(tmp_path / "a.jsonl.xz", TEXTS)


def documents(folder: Path, split: str) -> list[str]:
    """The documents of a split, without the end-of-text token before each."""
    tokenizer, shards = load_tokenizer(folder), Shards(folder, split)
    return tokenizer.decode(shards.read(0, shards.num_tokens)).split(tokenizer.eos_token)[1:]


def test_prepare_writes_tokens_and_prints_a_summary(source, tmp_path, capsys) -> None:
    """Through the command line: vocabulary, both splits, all figures, and the next command."""
    val = jsonl(tmp_path / "b.jsonl.xz", ["", *TEXTS[::-40]])
    out = tmp_path / "out"
    attractor("prepare", source, "--out", str(out), "--val", val, "--vocab-size", "300", "--shard-tokens", "9999")
    printed = capsys.readouterr().out
    shards = Shards(out)
    assert documents(out, "train") == TEXTS
    assert documents(out, "val") == TEXTS[::-40]
    assert shards.vocab_size == 300
    assert len(list(out.glob("train-*.bin"))) > 2
    assert f"{shards.num_tokens:,}" in printed
    assert f"{shards.num_bytes / shards.num_tokens:.3f}" in printed
    assert "0 documents repaired" in printed
    assert "1 empty ones left out" in printed
    assert f"attractor train language/tiny --data {out}" in printed
    assert json.loads((out / "index.json").read_text())["splits"]["val"]["num_empty"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl.xz", "b.jsonl.xz", "out"]


def test_what_is_left_out_or_changed_is_counted_and_named(source, tmp_path, capsys) -> None:
    """Files and records without text, and documents that the tokenizer changes, in the summary and in the index."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "image.PNG").write_bytes(b"")
    (tmp_path / "in" / "a.jsonl").write_text('{"text": null}\n{"text": "The Sea"}\n{"text": "the moon"}\n')
    own = load_tokenizer(Path(prepare_text([source], tmp_path / "first", vocab_size=300).folder))
    own.backend_tokenizer.normalizer = normalizers.Lowercase()
    own.save_pretrained(tmp_path / "own")
    command = ["prepare", str(tmp_path / "in"), "--tokenizer", str(tmp_path / "own"), "--val-fraction", "0"]
    attractor(*command, "--out", str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "2 files or records without text were left out" in printed
    assert "image.PNG" in printed
    assert "a.jsonl: line 1: field 'text' holds NoneType" in printed
    assert "1 documents are not given back by their tokens" in printed
    assert "document 1: 'The Sea' becomes 'the sea' at character 1" in printed
    index = json.loads((tmp_path / "out" / "index.json").read_text())["splits"]["train"]
    assert (index["num_left_out"], index["num_changed"], index["num_bytes"]) == (2, 1, 15)


def test_a_hash_of_the_text_decides_what_is_held_out(source, tmp_path) -> None:
    """The same documents are held out in any order, and equal documents are in the same split."""
    prepare_text((source,), tmp_path / "one", val_fraction=0.1, vocab_size=300)
    held = documents(tmp_path / "one", "val")
    assert 20 <= len(held) <= 60
    assert sorted(held + documents(tmp_path / "one", "train")) == sorted(TEXTS)
    twice = jsonl(tmp_path / "twice.jsonl.xz", TEXTS[::-1] + TEXTS)
    prepare_text((twice,), tmp_path / "two", val_fraction=0.1, vocab_size=300)
    assert documents(tmp_path / "two", "val") == [t for t in TEXTS[::-1] + TEXTS if t in held]


def test_at_least_one_document_is_held_out(tmp_path) -> None:
    """If none is chosen by chance, it is the last. 0 holds out none."""
    prepare_text((jsonl(tmp_path / "few.jsonl.xz", TEXTS[:9]),), tmp_path / "few", val_fraction=1e-9, vocab_size=270)
    assert documents(tmp_path / "few", "train") == TEXTS[:8]
    assert documents(tmp_path / "few", "val") == TEXTS[8:9]
    one = tmp_path / "one.txt"
    one.write_text("".join(TEXTS))
    prepare_text((str(one),), tmp_path / "one", val_fraction=0, vocab_size=270)
    assert documents(tmp_path / "one", "train") == ["".join(TEXTS)]
    with pytest.raises(DataError, match="no split 'val'"):
        Shards(tmp_path / "one", "val")


def test_of_a_single_document_the_end_is_held_out(tmp_path, capsys) -> None:
    """Whole lines, not seen by the tokenizer either, and the command says so; a document of two words is too short."""
    one = tmp_path / "one.txt"
    one.write_text("".join(TEXTS) + "Ω\n" * 400)
    attractor("prepare", str(one), "--out", str(tmp_path / "out"), "--vocab-size", "290")
    assert "one document; its end is held out" in capsys.readouterr().out
    [train], [val] = documents(tmp_path / "out", "train"), documents(tmp_path / "out", "val")
    assert train + val == one.read_text()
    assert val.startswith("\nChapter")
    assert 5_000 < len(val) <= 10_000
    assert len(load_tokenizer(tmp_path / "out").tokenize("Ω")) == 2  # bytes that are no entry together
    one.write_text("so it")
    with pytest.raises(DataError, match="val_fraction=0"):
        attractor("prepare", str(one), "--out", str(tmp_path / "short"), "--tokenizer", str(tmp_path / "out"))
    assert not (tmp_path / "short").exists()


def test_the_next_command_fits_the_tokenizer(source, tmp_path, capsys) -> None:
    """Text for a retrofitted model, or for one that can be retrofitted, is for training that model."""
    prepare_text((source,), tmp_path / "own", vocab_size=300)
    for kind, says in (
        ("attractor", "train language/retrofit --init {own} --data"),
        ("qwen3", "retrofit {own} model, and then: attractor train language/retrofit --init model --data"),
    ):
        (tmp_path / "own" / "config.json").write_text(json.dumps({"model_type": kind}))
        attractor("prepare", source, "--tokenizer", str(tmp_path / "own"), "--out", str(tmp_path / kind))
        printed = capsys.readouterr().out
        assert f"Next: attractor {says.format(own=tmp_path / 'own')} {tmp_path / kind}" in printed


def test_the_tokenizer_is_trained_on_all_sources(source, tmp_path, monkeypatch) -> None:
    """On the same amount of each, and not on held-out text."""
    learnt: list[str] = []
    real = text.train_tokenizer

    def watch(texts, vocab_size):
        learnt[:] = texts
        return real(learnt, vocab_size)

    monkeypatch.setattr(text, "train_tokenizer", watch)
    other = jsonl(tmp_path / "b.jsonl.xz", [t.upper() for t in TEXTS])
    prepare_text((source, other), tmp_path / "out", val_fraction=0.2, vocab_size=270, tokenizer_bytes=8000)
    first = [t for t in learnt if t.startswith("Chapter")]
    second = [t for t in learnt if t.startswith("CHAPTER")]
    assert sum(map(len, first)) == sum(map(len, second)) == 4000
    assert not set(learnt) & set(documents(tmp_path / "out", "val"))
    assert first[:-1] == [t for t in documents(tmp_path / "out", "train") if t in first[:-1]]


def test_a_tokenizer_can_be_reused(source, tmp_path, capsys) -> None:
    """With --tokenizer none is trained, and both folders have the same fingerprint."""
    prepare_text((source,), tmp_path / "one", vocab_size=300)
    attractor("prepare", source, "--tokenizer", str(tmp_path / "one"), "--out", str(tmp_path / "two"))
    assert Shards(tmp_path / "one").tokenizer == Shards(tmp_path / "two").tokenizer
    assert (tmp_path / "one" / "train-00000.bin").read_bytes() == (tmp_path / "two" / "train-00000.bin").read_bytes()


def test_verify_reads_everything(source, tmp_path, capsys) -> None:
    """A flipped bit at the end of a file is found."""
    out = tmp_path / "out"
    prepare_text((source,), out, vocab_size=300)
    attractor("verify", str(out))
    assert "All checksums match" in capsys.readouterr().out
    file = out / "val-00000.bin"
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"val-00000.bin: does not match its checksum"):
        verify_data(out)


def test_commands_have_help(capsys) -> None:
    """For the group and for each command."""
    for arguments, says in (
        (["--help"], "prepare"),
        (["prepare", "--help"], "--val-fraction"),
        (["verify", "--help"], "PATH"),
    ):
        with pytest.raises(SystemExit) as stop:
            attractor(*arguments)
        assert stop.value.code == 0
        assert says in capsys.readouterr().out


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no source": ([], "at least one source"),
    "missing source": (["none.txt"], "none.txt: no such file"),
    "missing val": (["SOURCE", "--val", "none.txt"], "none.txt: no such file"),
    "source in val": (["SOURCE", "--val", "SOURCE"], "is both in the sources and in val"),
    "wrong field": (["SOURCE", "--field", "txet"], "line 1 has no field 'txet'; did you mean 'text'"),
    "huge share": (["SOURCE", "--val-fraction", "5"], "val_fraction=5: give a number"),
    "no bytes": (["SOURCE", "--tokenizer-bytes", "0"], "tokenizer_bytes=0"),
    "no tokens": (["SOURCE", "--shard-tokens", "0"], "shard_tokens=0"),
    "tiny vocabulary": (["SOURCE", "--vocab-size", "100"], "vocabulary of 100 cannot hold all bytes"),
    "huge vocabulary": (["SOURCE", "--vocab-size", "100000"], "the text has only"),
    "no tokenizer": (["SOURCE", "--tokenizer", "a/b/c"], "a/b/c: no such folder"),
    "taken": (["SOURCE", "--out", "TAKEN"], "exists already"),
    "cut file": (["CUT", "--val-fraction", "0"], "cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_error_is_one_sentence_and_leaves_nothing(name: str, source, tmp_path) -> None:
    """The folder is as it was before."""
    arguments, says = MISTAKES[name]
    taken, cut = tmp_path / "taken", tmp_path / "cut.jsonl.xz"
    taken.mkdir()
    cut.write_bytes(Path(source).read_bytes()[:-40])
    before = sorted(p.name for p in tmp_path.iterdir())
    places = {"SOURCE": source, "TAKEN": str(taken), "CUT": str(cut)}
    arguments = [places.get(a, a) for a in arguments]
    with pytest.raises((ConfigError, DataError)) as caught:
        attractor("prepare", "--vocab-size", "300", "--out", str(tmp_path / "out"), *arguments)
    assert isinstance(caught.value, AttractorError)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_interrupt_leaves_nothing(source, tmp_path, monkeypatch) -> None:
    """Ctrl-C during the write."""

    def interrupt(meter, num_bytes, num_tokens):
        assert len(list(tmp_path.iterdir())) == 3  # the lock too
        raise KeyboardInterrupt

    monkeypatch.setattr(text._Meter, "advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_text((source,), tmp_path / "out", vocab_size=300)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl.xz"]
