"""Owner locks and names from files: one process writes a folder, and a name of a stranger stays inside its folder."""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
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


def test_folders_whose_names_differ_after_the_last_dot_are_written_at_the_same_time(tmp_path: Path) -> None:
    """Neither takes the other one's temporary folder for a leftover."""
    with new_folder(tmp_path / "qwen3-0.6b") as first, new_folder(tmp_path / "qwen3-0.8b") as second:
        (first / "a").touch()
        (second / "b").touch()
    assert (tmp_path / "qwen3-0.6b" / "a").exists()
    assert (tmp_path / "qwen3-0.8b" / "b").exists()


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


@pytest.fixture
def amendable(tmp_path: Path) -> Path:
    """A folder with a file of the content "old", another one, and checksums."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config.json", "other"):
        (folder / name).write_text("old")
    write_checksums(folder)
    return folder


def amend(folder: Path) -> None:
    with amended_file(folder, "config.json") as part:
        part.write_text("the new content")


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_amended_file_and_its_checksum_change_together(failing: int, amendable: Path, monkeypatch) -> None:
    """A replacement that fails leaves the old or the new file, and checksums that fit; an error means the old one."""
    replace, calls = os.replace, iter(range(1, 10))

    def fails(source, target):
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        if failing < 3:
            with pytest.raises(ConfigError, match="free some disk space"):
                amend(amendable)
        else:
            amend(amendable)
    assert (amendable / "config.json").read_text() == ("old" if failing < 3 else "the new content")
    verify_folder(amendable, CheckpointError)
    assert {path.name for path in amendable.iterdir()} == {"config.json", "other", "checksums.json"}
    amend(amendable)
    assert (amendable / "config.json").read_text() == "the new content"
    assert '"or"' not in (amendable / "checksums.json").read_text()


def test_a_full_disk_leaves_a_file_that_is_amended(amendable: Path) -> None:
    """The part is removed."""
    before = {path.name: path.read_bytes() for path in amendable.iterdir()}
    with pytest.raises(ConfigError, match="free some disk space"):
        fill_disk(amended_file(amendable, "config.json"), OSError(28, "No space left on device"))
    assert {path.name: path.read_bytes() for path in amendable.iterdir()} == before


def test_a_kill_at_any_step_leaves_a_folder_that_can_be_read(amendable: Path, tmp_path: Path) -> None:
    """At every operation on files: the old or the new file, checksums that fit, and the next change works."""
    seen = set()
    for step in range(1000):
        copy = shutil.copytree(amendable, tmp_path / "copy")
        finished = killed_at_operation(step, lambda copy=copy: amend(copy))
        verify_folder(copy, CheckpointError)
        seen.add((copy / "config.json").read_text())
        amend(copy)
        verify_folder(copy, CheckpointError)
        assert {path.name for path in copy.iterdir()} == {"config.json", "other", "checksums.json"}
        shutil.rmtree(copy)
        if finished:
            break
    assert finished
    assert step > 10
    assert seen == {"old", "the new content"}


def killed_at_operation(step: int, action: Callable[[], None]) -> bool:
    """Run ``action`` in a child that ends without clean-up at an operation on files; return whether it came to its end."""
    if (child := os.fork()) == 0:
        events = itertools.count()

        def end(event: str, _: object) -> None:
            if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and next(events) == step:
                os._exit(9)

        sys.addaudithook(end)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 0
