"""Owner locks: one process at a time writes into a folder.

A lock is an advisory lock of the operating system (``flock``) on a file that also names its owner. The death of the owner
releases it. Some shared disks have no such locks, or have them only within one machine; there the file's age decides. The
owner renews the file every few seconds, and a process on another machine takes over only from an owner that stopped.
"""

import errno
import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attractor.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # the name of the lock in a folder
RENEWAL = 10.0  # seconds
LEASE = 60.0  # seconds without renewal after which an owner on another machine counts as dead


class OwnedError(ConfigError):
    """Another process owns the lock."""


@contextmanager
def owner_lock(file: Path) -> Iterator[None]:
    """Own the lock ``file`` in this block; its folder must exist.

    Raises
    ------
    OwnedError
        If another process owns it.
    ConfigError
        If the file cannot be written.
    """
    try:
        descriptor = _acquire(file)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some disk space and try again" if is_full else "choose another place"
        raise ConfigError(f"{file.parent}: cannot be written ({error.strerror or error}); {advice}.") from error
    finished = threading.Event()
    renewal = threading.Thread(target=_renew, args=(file, finished), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        finished.set()
        renewal.join()
        with suppress(OSError):
            if _is_current(descriptor, file):
                file.unlink()
        os.close(descriptor)


def _acquire(file: Path) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            owner = _read_owner(descriptor)
            if not _lock(descriptor, owner, file):
                who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
                raise OwnedError(
                    f"{file.parent}: is being written by {who}; wait until it has ended, or choose another folder."
                )
            if not _is_current(descriptor, file):  # its owner has just removed it
                os.close(descriptor)
                continue
            try:
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
            except OSError:  # a full disk
                file.unlink()
                raise
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def _lock(descriptor: int, owner: dict[str, Any], file: Path) -> bool:
    """Lock the file and return whether this process is now its owner."""
    is_local = owner.get("host") == socket.gethostname()
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return not owner or is_local or _age(descriptor, file) > LEASE
        except BlockingIOError:
            return False
        except OSError:  # this disk has no such locks
            pass
    return not owner or (is_local and not _is_alive(owner["pid"])) or _age(descriptor, file) > LEASE


def _age(descriptor: int, file: Path) -> float:
    """Return the seconds since the last renewal, by the clock of the disk."""
    with tempfile.TemporaryFile(dir=file.parent) as now:
        now.write(b"0")
        now.flush()
        return os.fstat(now.fileno()).st_mtime - os.fstat(descriptor).st_mtime


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_current(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _read_owner(descriptor: int) -> dict[str, Any]:
    """Return host and pid of the owner, or nothing for a new or damaged file."""
    try:
        owner = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return {}
    is_valid = isinstance(owner, dict) and isinstance(owner.get("host"), str) and type(owner.get("pid")) is int
    return owner if is_valid and 0 < owner["pid"] < 1 << 31 else {}


def _renew(file: Path, finished: threading.Event) -> None:
    while not finished.wait(RENEWAL):
        with suppress(OSError):
            os.utime(file)
