"""Owner locks and names from files: one process writes a folder, and a name of a stranger stays inside its folder."""

import json
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import zlib
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from attractor.errors import CheckpointError, ConfigError
from attractor.files import lock, member, new_file, new_folder, output_folder, write_bytes, write_text
from attractor.files.lock import owner_lock
from attractor.files.manifest import amended_file, read_checksums, verify_folder, write_checksums

HOLD = """
import sys, time
from pathlib import Path
from attractor.files.lock import owner_lock
with owner_lock(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(60)
"""


def owner_of(file: Path) -> subprocess.Popen:
    """Start a process that owns the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "owned\n"
    return process


def test_a_lock_has_one_owner_until_its_death(tmp_path: Path) -> None:
    """The refusal names the owner. A killed owner leaves the file behind, which then has no effect."""
    file = tmp_path / ".lock"
    process = owner_of(file)
    with pytest.raises(ConfigError, match=f"written by process {process.pid} on"), owner_lock(file):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert file.exists()
    with owner_lock(file):
        assert json.loads(file.read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    assert not file.exists()


@pytest.mark.parametrize("has_flock", [True, False])
def test_an_owner_on_another_machine_is_dead_after_its_lease(has_flock: bool, tmp_path: Path, monkeypatch) -> None:
    """There, only the age of the lock tells. A disk without locks of the operating system is the same."""
    if not has_flock:
        monkeypatch.setattr(lock, "fcntl", None)
    file = tmp_path / ".lock"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(ConfigError, match="written by process 1 on elsewhere"), owner_lock(file):
        pass
    old = time.time() - lock.LEASE - 1
    os.utime(file, (old, old))
    with owner_lock(file):
        pass


def test_a_disk_without_locks_asks_whether_the_owner_lives(tmp_path: Path, monkeypatch) -> None:
    """On the same machine a dead process is known at once."""
    monkeypatch.setattr(lock, "fcntl", None)
    file = tmp_path / ".lock"
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    file.write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid}))
    with owner_lock(file), pytest.raises(ConfigError, match=f"process {os.getpid()} on"), owner_lock(file):
        pass


def test_an_owner_renews_its_lock(tmp_path: Path, monkeypatch) -> None:
    """So that a long run is not taken for a dead one."""
    monkeypatch.setattr(lock, "RENEWAL", 0.05)
    with owner_lock(tmp_path / ".lock"):
        os.utime(tmp_path / ".lock", (0, 0))
        time.sleep(0.5)
        assert (tmp_path / ".lock").stat().st_mtime > 0


def test_leftovers_of_a_killed_process_neither_block_nor_stay(tmp_path: Path) -> None:
    """Folders with other names stay, also those that look similar."""
    for name in (".out.part-0123456789ab", ".out.part-mine", ".other.part-0123456789ab"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").touch()
    (tmp_path / ".out.lock").touch()
    with new_folder(tmp_path / "out") as part:
        (part / "b").touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.part-0123456789ab", ".out.part-mine", "out"]
    page = tmp_path / "page"
    (page / ".output.part-0123456789ab").mkdir(parents=True)
    (page / ".lock").touch()
    with output_folder(page) as part:
        (part / "index.html").touch()
    assert [p.name for p in page.iterdir()] == ["index.html"]


def test_two_processes_do_not_write_one_folder(tmp_path: Path) -> None:
    """The second is refused at its start, not at its end."""
    with new_folder(tmp_path / "out") as part:
        (part / "a").touch()
        with pytest.raises(ConfigError, match="being written by process"), new_folder(tmp_path / "out"):
            pytest.fail("entered")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_devices_pipes_and_links_are_written_to(tmp_path: Path) -> None:
    """None of them is replaced by a file. Permissions of a file stay."""
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_text(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link", "pipe"]
    if Path("/dev/full").exists():
        with pytest.raises(ConfigError, match=r"/dev/full: cannot be written \(No space left on device\); free some"):
            write_bytes(Path("/dev/full"), b"x" * 100_000)


def fill_disk(place: AbstractContextManager[Path], error: Exception) -> None:
    with place as part:
        (part / "a" if part.is_dir() else part).write_text("a part")
        raise error


def test_a_full_disk_is_one_sentence_in_the_classes_of_libraries(tmp_path: Path) -> None:
    """safetensors and tokenizers raise their own classes."""
    for error in (OSError(28, "No space left on device"), RuntimeError("No space left on device (os error 28)")):
        for place in (new_folder(tmp_path / "out"), new_file(tmp_path / "a.gif"), output_folder(tmp_path / "page")):
            with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\); free some"):
                fill_disk(place, error)
    assert not list(tmp_path.iterdir())


BAD_NAMES = ["../a", "/etc/passwd", "a/../../b", "", ".", "a//b", "a\\b", "a\x00", "a\nb", "x" * 300, 3, None, ["a"]]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_from_a_file_stays_in_its_folder(name: object, tmp_path: Path) -> None:
    """Also in a checksum file, whose own checksum anybody can compute."""
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="is no plain name inside its folder"):
        member(folder, name, CheckpointError, folder / "index.json")
    if isinstance(name, str):
        (folder / "checksums.json").write_text(signed({name: {"size": 0, "crc32": 0}}))
        with pytest.raises(CheckpointError, match="is no plain name inside its folder"):
            read_checksums(folder)


def signed(files: object) -> str:
    return json.dumps({"crc32": zlib.crc32(json.dumps(files, sort_keys=True).encode()), "files": files})


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    """Links inside a folder, and those of the hub's cache to its blobs, are not."""
    folder = tmp_path / "snapshots" / "1234"
    folder.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for target in (tmp_path / "blobs" / "x", folder / "y", tmp_path / "secret"):
        target.write_text("x")
        (folder / f"to-{target.name}").symlink_to(target)
    assert member(folder, "to-x", CheckpointError, folder).read_text() == "x"
    assert member(folder, "to-y", CheckpointError, folder).read_text() == "x"
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        member(folder, "to-secret", CheckpointError, folder)


@pytest.mark.parametrize("files", [[], {"a": 3}, {"a": {"size": "1", "crc32": 2}}, {"a": {}}, "a"], ids=repr)
def test_a_checksum_file_of_other_types_is_refused(files: object, tmp_path: Path) -> None:
    """Its own checksum is right."""
    (tmp_path / "checksums.json").write_text(signed(files))
    with pytest.raises(CheckpointError, match=r"checksums\.json: has no size and checksum"):
        read_checksums(tmp_path)


def test_an_amended_file_and_its_checksum_change_together(tmp_path: Path, monkeypatch) -> None:
    """A failure at any place leaves the folder as it was."""
    file = tmp_path / "generation_config.json"
    file.write_text("old")
    write_checksums(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    replace, full = os.replace, OSError(28, "No space left on device")
    for failing in (1, 2):
        calls = iter(range(1, 10))

        def fails(source, target, calls=calls, failing=failing):
            if next(calls) == failing:
                raise full
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fails)
            with pytest.raises(ConfigError, match="free some disk space"), amended_file(tmp_path, file.name) as part:
                part.write_text("new")
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(ConfigError, match="free some disk space"):
        fill_disk(amended_file(tmp_path, file.name), full)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with amended_file(tmp_path, file.name) as part:
        part.write_text("new")
    assert file.read_text() == "new"
    verify_folder(tmp_path, CheckpointError)
