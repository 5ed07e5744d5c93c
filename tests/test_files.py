"""Files: writes are atomic, and every error is one sentence of the caller's class."""

import json
import math
import os
import tempfile
import zlib
from pathlib import Path

import pytest

from attractor.errors import CheckpointError, ConfigError, DataError
from attractor.files import (
    check_output_dir,
    checksum,
    first_line,
    json_safe,
    new_file,
    new_folder,
    output_folder,
    read_json,
    require_free,
    write_bytes,
    write_json,
    write_text,
)


def write_and_fail(file: Path) -> None:
    file.write_text("half")
    raise RuntimeError


def test_a_file_has_the_old_or_the_new_content(tmp_path: Path) -> None:
    """An error during a write leaves the old file and no temporary file."""
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with pytest.raises(RuntimeError), new_file(file, sync=True) as part:
        write_and_fail(part)
    assert file.read_text() == "old"
    write_text(file, "new ü", sync=True)
    assert file.read_text(encoding="utf-8") == "new ü"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(ConfigError, match=r"none/a.txt: cannot be written \(No such file or directory\)"):
        write_text(tmp_path / "none" / "a.txt", "x")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs /dev/shm")
def test_files_in_shared_memory_are_replaced_too() -> None:
    """An open reader keeps the old content."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        file = Path(folder, "a.json")
        write_bytes(file, b"old")
        with file.open("rb") as reader:
            write_bytes(file, b"new")
            assert (reader.read(), file.read_bytes()) == (b"old", b"new")


def test_a_temporary_file_keeps_its_suffix(tmp_path: Path) -> None:
    """Libraries that choose a format by the suffix can write to it."""
    with new_file(tmp_path / "a.png") as part:
        assert part.suffix == ".png"
        part.touch()


def test_a_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    """After an error nothing is left. An existing path is refused."""
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), new_folder(out) as part:
        write_and_fail(part / "a")
    assert list(tmp_path.iterdir()) == []
    with new_folder(out) as part:
        (part / "a").touch()
    assert [p.name for p in out.iterdir()] == ["a"]
    with pytest.raises(ConfigError, match="exists already"):
        require_free(out)


def test_an_output_folder_gets_its_files_at_the_end(tmp_path: Path) -> None:
    """Other files stay. After an error the folder is as it was before."""
    out = tmp_path / "new" / "out"
    with pytest.raises(RuntimeError), output_folder(out) as part:
        write_and_fail(part / "a")
    assert list(tmp_path.iterdir()) == []
    with output_folder(out) as part:
        (part / "a").touch()
    with pytest.raises(ConfigError, match="not empty"), output_folder(out):
        pass
    with output_folder(out, overwrite=True) as part:
        (part / "b").touch()
    assert sorted(p.name for p in out.iterdir()) == ["a", "b"]


def test_output_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    """A file, a folder that holds files, and contradictory settings."""
    (tmp_path / "file").touch()
    for out, settings, says in (
        (tmp_path / "file", {}, "is a file"),
        (tmp_path, {}, "not empty"),
        (tmp_path, {"resume": True, "overwrite": True}, "give one of them"),
        (tmp_path / "file" / "out", {}, "cannot be written"),
    ):
        with pytest.raises(ConfigError, match=says):
            check_output_dir(out, **settings)
    check_output_dir(tmp_path, resume=True)
    check_output_dir(tmp_path / "new" / "out")


def test_json_is_read_as_an_object(tmp_path: Path) -> None:
    """Missing files, other text and other values raise the given class, with the given advice."""
    file = tmp_path / "a.json"
    with pytest.raises(DataError, match=r"cannot be read as JSON \(it does not exist\); make it again\."):
        read_json(file, DataError, advice="make it again")
    for text, says in (("{", "cannot be read as JSON"), ("[1]", "holds no JSON object")):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=says):
            read_json(file, CheckpointError)
    write_json(file, {"a": 1, "b": [math.inf, (2.0, math.nan)], "c": {"d": -math.inf}})
    assert read_json(file, DataError) == {"a": 1, "b": [None, [2.0, None]], "c": {"d": None}}
    assert json.dumps(json_safe({"x": math.nan}), allow_nan=False) == '{"x": null}'


def test_a_checksum_is_that_of_the_content(tmp_path: Path) -> None:
    """CRC-32, also of a file that is larger than what is read at a time."""
    data = os.urandom((1 << 22) + 5)
    (tmp_path / "a").write_bytes(data)
    assert checksum(tmp_path / "a") == zlib.crc32(data)


def test_the_first_line_of_an_error_is_never_empty() -> None:
    """Without a message it is the name of the class."""
    assert first_line(ValueError("\n one.\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
