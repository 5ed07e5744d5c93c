"""Files: atomic writes, JSON, checksums, and the checks of output folders."""

import errno
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attractor.errors import AttractorError, ConfigError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHUNK = 1 << 22  # bytes that are read at a time for a checksum


def check_output_dir(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise a ConfigError for an output folder that cannot be written or already holds files.

    Nothing is created. With ``resume`` or ``overwrite`` the folder may hold files; only one of them can be given.
    """
    if resume and overwrite:
        raise ConfigError("--resume continues what is in the folder and --overwrite replaces it; give one of them.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder with --out.")
    if out.exists() and any(out.iterdir()) and not (resume or overwrite):
        raise ConfigError(f"{out}: this folder is in use; choose another with --out, or say --overwrite.")
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{out}: cannot be written; choose another folder with --out.")


def require_free(out: Path) -> None:
    """Raise a ConfigError if ``out`` exists."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out}: exists already; choose another folder, or remove this one first.")


@contextmanager
def reported_write_errors(path: str | Path, advice: str = "choose another place") -> Iterator[None]:
    """Turn an OSError, such as a full disk, into a ConfigError that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            advice = "free some disk space and try again"
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error}); {advice}.") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``out``. It becomes ``out`` at the end, or is removed after an error.

    Raises
    ------
    ConfigError
        If ``out`` exists or cannot be written.
    """
    require_free(out)
    part = _temporary_name(out)
    try:
        with reported_write_errors(out):
            part.mkdir(parents=True)
            yield part
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def output_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder inside ``out``, whose files move to ``out`` at the end.

    ``out`` may exist; it must be empty unless ``overwrite``. After an error it is as it was before.

    Raises
    ------
    ConfigError
        If ``out`` holds files and ``overwrite`` is false, or it cannot be written.
    """
    created = [path for path in (out, *out.parents) if not path.exists()]
    check_output_dir(out, overwrite=overwrite)
    with reported_write_errors(out, "choose another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=out))
    try:
        yield part
        with reported_write_errors(out):
            for file in sorted(part.iterdir()):
                file.replace(out / file.name)
            part.rmdir()
    except BaseException:
        shutil.rmtree(part)
        with suppress(OSError):  # the folder holds other files by now
            for path in created:
                path.rmdir()
        raise


@contextmanager
def new_file(file: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``file``. It replaces ``file`` at the end, or is removed after an error.

    With ``sync``, the content is on the disk before the replacement. Raises ConfigError if ``file`` cannot be written.
    """
    part = _temporary_name(file)
    try:
        with reported_write_errors(file):
            yield part
            if sync:
                sync_file(part)
            os.replace(part, file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(file: Path, data: bytes, *, sync: bool = False) -> None:
    """Write ``data`` atomically: ``file`` has the old or the new content, never a part of it."""
    with new_file(file, sync=sync) as part:
        part.write_bytes(data)


def write_text(file: Path, text: str, *, sync: bool = False) -> None:
    """Write ``text`` atomically, as UTF-8."""
    write_bytes(file, text.encode(), sync=sync)


def write_json(file: Path, data: Any, *, sync: bool = False) -> None:
    """Write ``data`` atomically, as indented JSON; see :func:`json_safe` for numbers that are not finite."""
    write_text(file, json.dumps(json_safe(data), indent=2) + "\n", sync=sync)


def read_json(file: Path, error_class: type[AttractorError], *, advice: str = "give another file") -> dict[str, Any]:
    """Return the JSON object in ``file``.

    Raises
    ------
    error_class
        If the file does not exist, is not JSON, or holds something else than an object. The message ends in ``advice``.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else error
        raise error_class(f"{file}: cannot be read as JSON ({reason}); {advice}.") from error
    if not isinstance(data, dict):
        raise error_class(f"{file}: holds no JSON object; {advice}.")
    return data


def json_safe(value: Any) -> Any:
    """Return nested plain data with None for every float that is not finite, because JSON has no such number."""
    if isinstance(value, dict):
        return {name: json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file's content."""
    value = 0
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def sync_file(file: Path) -> None:
    """Wait until the content of ``file`` is on the disk."""
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the list of files in ``folder`` is on the disk, where the operating system supports it."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or the error's class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _temporary_name(path: Path) -> Path:
    """Return a hidden name in the same folder, with the same suffix."""
    return path.with_name(f".{path.stem}.part-{os.getpid()}{path.suffix}")
