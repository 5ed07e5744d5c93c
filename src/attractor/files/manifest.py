"""``checksums.json``: the size and CRC-32 of every other file of a folder, which makes damage visible.

Checksums protect against accidents and not against attacks: the file of a stranger proves nothing.
"""

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attractor.errors import AttractorError, CheckpointError, ConfigError
from attractor.files import (
    checksum,
    is_temporary,
    member,
    read_json,
    remove_leftovers,
    reported_write_errors,
    sync_file,
    sync_folder,
    temporary_folder,
    write_text,
)
from attractor.files.lock import LOCK, owner_lock

CHECKSUMS = "checksums.json"
Checksums = dict[str, dict[str, int]]  # by file name, relative to the folder: "size" in bytes and "crc32"


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json`` for all files in ``folder``, and wait until everything is on the disk."""
    write_checksum_file(folder, compute_checksums(folder, list_files(folder)))


def write_checksum_file(folder: Path, checksums: Checksums) -> None:
    """Write ``checksums.json``, and wait until the folder is on the disk."""
    write_text(folder / CHECKSUMS, _format(checksums), sync=True)
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(each)


def list_files(folder: Path) -> list[str]:
    """Return the names of all files but ``checksums.json`` and temporary ones, relative to ``folder``."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = [file.as_posix() for file in files if not any(map(is_temporary, (file, *file.parents)))]
    return sorted(set(names) - {CHECKSUMS})


def compute_checksums(folder: Path, names: Iterable[str]) -> Checksums:
    """Wait until these files are on the disk, and return their checksums."""
    found = {}
    for name in names:
        sync_file(folder / name)
        found[name] = _entry(folder / name)
    return found


def read_checksums(folder: Path, error_class: type[AttractorError] = CheckpointError) -> Checksums:
    """Return the checksums in ``checksums.json``, whose names are plain names of files inside ``folder``."""
    file = folder / CHECKSUMS
    if not file.is_file():
        raise error_class(f"{file}: is missing{damaged(error_class)}")
    data = read_json(file, error_class, advice=damaged(error_class).strip("; ."))
    checksums: Checksums = data.get("files", {})
    if data.get("crc32") != _own_checksum(checksums):
        raise error_class(f"{file}: does not match its own checksum{damaged(error_class)}")
    for name, entry in checksums.items() if isinstance(checksums, dict) else [("", None)]:
        if not isinstance(entry, dict) or any(type(entry.get(key)) is not int for key in ("size", "crc32")):
            raise error_class(f"{file}: has no size and checksum for {name!r}{damaged(error_class)}")
        member(folder, name, error_class, file)
    return checksums


def verify_files(
    folder: Path, expected: Checksums, names: Iterable[str], error_class: type[AttractorError] = CheckpointError
) -> None:
    """Raise an error for the first of these files that is missing, damaged or foreign."""
    end = damaged(error_class)
    for name in names:
        file = folder / name
        if name not in expected:
            raise error_class(f"{file}: does not belong to this checkpoint{end}")
        if not file.is_file():
            raise error_class(f"{file}: is missing{end}")
        size, expected_size = file.stat().st_size, expected[name]["size"]
        if size != expected_size:
            raise error_class(f"{file}: has {size:,} bytes and not {expected_size:,}{end}")
        if checksum(file) != expected[name]["crc32"]:
            raise error_class(f"{file}: does not match its checksum{end}")


def verify_folder(folder: Path, error_class: type[AttractorError]) -> None:
    """Raise an error for the first file of ``folder`` that is missing or damaged, or foreign to a checkpoint."""
    expected = read_checksums(folder, error_class)
    foreign = list_files(folder) if error_class is CheckpointError else []
    verify_files(folder, expected, sorted(expected.keys() | set(foreign)), error_class)


def damaged(error_class: type[AttractorError]) -> str:
    """Return the end of a sentence about a damaged file."""
    return "; the checkpoint is damaged." if error_class is CheckpointError else "; make the folder again."


@contextmanager
def amended_file(folder: Path, name: str) -> Iterator[Path]:
    """Yield a temporary path that replaces the file ``name`` of ``folder`` and its checksum: both of them or neither.

    Raises
    ------
    ConfigError
        If the folder cannot be written or another process writes it.
    """
    file, sums = folder / name, folder / CHECKSUMS
    if file.is_symlink():
        raise ConfigError(f"{file}: is a link to a file that others may use; copy the folder and change the copy.")
    with owner_lock(folder / LOCK), reported_write_errors(file):
        remove_leftovers(folder, of=".amended")
        with temporary_folder(folder / "amended") as part:
            yield part / name
            sync_file(part / name)
            if not sums.is_file():
                os.replace(part / name, file)
                return
            (part / CHECKSUMS).write_text(_format(read_checksums(folder) | compute_checksums(part, [name])))
            sync_file(part / CHECKSUMS)
            before = shutil.copy2(file, part / "before") if file.exists() else None
            os.replace(part / name, file)
            try:
                os.replace(part / CHECKSUMS, sums)
            except OSError:
                file.unlink() if before is None else os.replace(before, file)
                raise
            sync_folder(folder)


def _entry(file: Path) -> dict[str, int]:
    return {"size": file.stat().st_size, "crc32": checksum(file)}


def _format(checksums: Checksums) -> str:
    # Without a newline at the end: a file without its last byte must not be valid JSON.
    return json.dumps({"crc32": _own_checksum(checksums), "files": dict(sorted(checksums.items()))}, indent=1)


def _own_checksum(checksums: Checksums) -> int:
    return zlib.crc32(json.dumps(checksums, sort_keys=True).encode())
