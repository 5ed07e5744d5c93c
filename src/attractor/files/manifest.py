"""``checksums.json``: the size and CRC-32 of every other file of a folder, which makes damage visible.

Checksums protect against accidents and not against attacks: the file of a stranger proves nothing.

While :func:`amended_file` replaces a file, the entry of the file also holds that of its other version, under "or".
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
Entry = dict[str, Any]  # "size" in bytes and "crc32", and perhaps another entry under "or"
Checksums = dict[str, Entry]  # by file name, relative to the folder


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
        if not all(map(_is_entry, _versions(entry))):
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
        size, versions = file.stat().st_size, _versions(expected[name])
        versions = [entry for entry in versions if entry["size"] == size]
        if not versions:
            raise error_class(f"{file}: has {size:,} bytes and not {expected[name]['size']:,}{end}")
        if checksum(file) not in [entry["crc32"] for entry in versions]:
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

    If the process is killed in between, the folder holds the old file or the new one, and the checksums fit to it.

    Raises
    ------
    ConfigError
        If the folder cannot be written or another process writes it.
    CheckpointError
        If the file is damaged.
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
            checksums, new = read_checksums(folder), _entry(part / name)
            verify_files(folder, checksums, [name])
            for place, entry in (("both", new | {"or": _entry(file)}), ("new", new)):  # before anything is replaced
                (part / place).write_text(_format(checksums | {name: entry}))
                sync_file(part / place)
            os.replace(part / "both", sums)
            sync_folder(folder)
            os.replace(part / name, file)
            sync_folder(folder)
            with suppress(OSError):  # the change is complete without it
                os.replace(part / "new", sums)
                sync_folder(folder)


def _versions(entry: Any) -> list[Any]:
    """Return the entries of a file: one, or two while the file is replaced."""
    return [entry, entry["or"]] if isinstance(entry, dict) and "or" in entry else [entry]


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(type(entry.get(key)) is int for key in ("size", "crc32"))


def _entry(file: Path) -> Entry:
    return {"size": file.stat().st_size, "crc32": checksum(file)}


def _format(checksums: Checksums) -> str:
    # Without a newline at the end: a file without its last byte must not be valid JSON.
    return json.dumps({"crc32": _own_checksum(checksums), "files": dict(sorted(checksums.items()))}, indent=1)


def _own_checksum(checksums: Checksums) -> int:
    return zlib.crc32(json.dumps(checksums, sort_keys=True).encode())
