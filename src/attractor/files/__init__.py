"""Files: the one writer, JSON, checksums, names that come from files, and the checks of output folders."""

import errno
import glob
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attractor.errors import AttractorError, ConfigError
from attractor.files.lock import LOCK, owner_lock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_CHUNK = 1 << 22  # bytes that are read at a time for a checksum
# Temporary names of this module and of checkpoints. A killed process leaves them behind.
_MODEL_FILE = re.compile(r".*\.(safetensors|bin|npy|distcp|pt)|(.*config|tokenizer|run|index|training|.*\.index)\.json")
TEMPORARY = re.compile(r"\..*\.part-[0-9a-f]{12}(\.[^.]*)?|\.part-step-\d{8,}(-old)?")


def check_output_dir(out: Path, *, resume: bool | None = None, overwrite: bool = False) -> None:
    """Raise a ConfigError for an output folder that cannot be written or already holds files.

    Nothing is created. With ``resume`` or ``overwrite`` the folder may hold files; only one of them can be given.
    ``resume=None`` if there is nothing that could be resumed. Temporary files of a killed process do not count.
    """
    _require_outside(out)
    if resume and overwrite:
        raise ConfigError("--resume continues what is in the folder and --overwrite replaces it; give one of them.")
    with reported_write_errors(out, "choose another folder with --out"):
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out}: is a file; give a folder with --out.")
        files = [] if resume or overwrite or not out.exists() else [f for f in out.iterdir() if not is_temporary(f)]
        if files:
            is_run = resume is not None and any(file.name == "metrics.jsonl" for file in files)
            advice = ", continue its run with --resume," if is_run else ""
            raise ConfigError(
                f"{out}: this folder is not empty (it holds {min(files).name}); choose another with --out{advice} or replace "
                "what is in it with --overwrite."
            )
        nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(f"{out}: cannot be written; choose another folder with --out.")


def require_free(out: Path) -> None:
    """Raise a ConfigError if ``out`` exists."""
    if os.path.lexists(out):
        raise ConfigError(f"{out}: exists already; choose another folder, or remove this one first.")
    _require_outside(out)


def require_output_file(file: Path, *inputs: Path) -> None:
    """Raise a ConfigError for an output file that cannot be written, is an input, or belongs to a model or data.

    Nothing is written into a folder with ``checksums.json``, and no file of a model in another folder is replaced.
    """
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"{file}: cannot be written; give a file in a folder that exists.")
    target = real_path(file)
    is_part = (target.parent / "checksums.json").exists() or (target.is_file() and _MODEL_FILE.fullmatch(target.name))
    if is_part or any(target == real_path(path) for path in inputs):
        raise ConfigError(f"{file}: belongs to a model or to data that is read; choose another place for the output.")


def require_separate(out: Path, source: Path) -> None:
    """Raise a ConfigError if ``out`` is the input ``source`` or holds it."""
    if real_path(source).is_relative_to(real_path(out)):
        raise ConfigError(f"{out}: holds {source}, which is read; choose another place for the output.")


def _require_outside(out: Path) -> None:
    """Raise a ConfigError for prepared data, and for a folder inside a checkpoint, which the output would damage."""
    for path in (out, *out.absolute().parents):
        has_model = (path / "run.json").is_file() or (path / "config.json").is_file()
        if (path / "checksums.json").is_file() and (has_model or path == out):
            raise ConfigError(f"{out}: lies in {path}, which holds a model or data; choose another folder.")


def real_path(path: str | Path) -> Path:
    """Return an absolute path without links. Links that lead to themselves stay, where ``Path.resolve`` may fail."""
    return Path(os.path.realpath(path))


def is_temporary(path: Path) -> bool:
    """Return whether this is a lock, or a temporary file or folder of this package, by its name."""
    return path.name == LOCK or TEMPORARY.fullmatch(path.name) is not None


def remove_leftovers(folder: Path, of: str) -> None:
    """Remove temporary folders of killed processes, whose names begin with ``of``. The caller owns the lock."""
    for path in folder.glob(f"{glob.escape(of)}.part-*" if of else ".part-*"):
        if TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def require_regular(file: Path, error_class: type[AttractorError]) -> None:
    """Raise an error for a path that exists and is no regular file, such as a named pipe, which may never end."""
    if os.path.lexists(file) and not file.is_file():
        raise error_class(f"{file}: is no regular file; use another copy.")


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk is the cause of an error. Libraries report it in classes of their own."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else _rust_error(error)
        if number in DISK_FULL or "No space left" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _rust_error(error: BaseException) -> int | None:
    """Return the number in an error of the operating system that safetensors or tokenizers report."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextmanager
def reported_write_errors(path: str | Path, advice: str = "choose another place") -> Iterator[None]:
    """Turn the error of a write, such as a full disk, into a ConfigError that names ``path``."""
    try:
        yield
    except AttractorError:
        raise
    except Exception as error:
        if is_disk_full(error):
            reason, advice = "No space left on device", "free some disk space and try again"
        elif isinstance(error, OSError | UnicodeEncodeError) or _rust_error(error):  # a name may be no UTF-8
            reason = getattr(error, "strerror", None) or first_line(error)
        else:
            raise
        raise ConfigError(f"{path}: cannot be written ({reason}); {advice}.") from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``out``. It becomes ``out`` at the end, or is removed after an error.

    Raises
    ------
    ConfigError
        If ``out`` exists, cannot be written, or is being written by another process.
    """
    require_free(out)
    with reported_write_errors(out), made_folder(out.parent), owner_lock(out.with_name(f".{out.name}{LOCK}")):
        remove_leftovers(out.parent, of=f".{out.name}")
        with temporary_folder(out) as part:
            yield part
            require_free(out)
            part.rename(out)


@contextmanager
def output_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder inside ``out``, whose files move to ``out`` at the end.

    ``out`` may exist; it must be empty unless ``overwrite``. After an error it is as it was before.

    Raises
    ------
    ConfigError
        If ``out`` holds files and ``overwrite`` is false, cannot be written, or is being written by another process.
    """
    check_output_dir(out, overwrite=overwrite)
    with (
        reported_write_errors(out, "choose another folder with --out"),
        made_folder(out),
        owner_lock(out / LOCK),
    ):
        remove_leftovers(out, of=".output")
        with temporary_folder(out / "output") as part:
            yield part
            files = sorted(part.iterdir())
            for file in files:
                if (target := out / file.name).is_symlink() or target.is_dir():
                    raise ConfigError(f"{target}: is no regular file; remove it, or choose another folder.")
            for file in files:
                file.replace(out / file.name)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder and its parents. After an error, those of them that are new and empty are removed."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in created:
            with suppress(OSError):  # it holds files by now
                path.rmdir()
        raise


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder next to ``path``, and remove it at the end if it still has its name."""
    part = _temporary_name(path)
    try:
        part.mkdir()
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def new_file(file: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path. Its content becomes that of ``file`` at the end, or is removed after an error.

    A link is followed, and a device or a pipe is written to; neither is replaced. With ``sync``, the content is on the
    disk before the replacement. Raises ConfigError if ``file`` cannot be written.
    """
    with reported_write_errors(file):
        is_special = _is_special(file)
        target = real_path(file) if file.is_symlink() and not is_special else file
        part = Path(tempfile.gettempdir(), _temporary_name(file).name) if is_special else _temporary_name(target)
        try:
            yield part
            if is_special:
                with part.open("rb") as source, open(file, "wb") as sink:
                    shutil.copyfileobj(source, sink)
                return
            if sync:
                sync_file(part)
            with suppress(FileNotFoundError):
                shutil.copymode(target, part)
            os.replace(part, target)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _is_special(file: Path) -> bool:
    """Return whether a path exists and is no regular file and no folder, or names an open stream of a process."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return False
    return (
        (file.absolute().is_relative_to("/dev") and not file.absolute().is_relative_to("/dev/shm"))
        or file.absolute().is_relative_to("/proc")
        or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    )


def write_bytes(file: Path, data: bytes, *, sync: bool = False) -> None:
    """Write ``data`` atomically: ``file`` has the old or the new content, never a part of it."""
    with new_file(file, sync=sync) as part:
        part.write_bytes(data)


def member(folder: Path, name: object, error_class: type[AttractorError], named_in: Path) -> Path:
    """Return the path of a file in ``folder`` whose name comes from another file.

    Raises
    ------
    error_class
        If the name leads out of the folder: an absolute name, "..", or a link. The message names ``named_in``.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    plain = all(part not in ("", ".", "..") and len(os.fsencode(part)) < 256 and part.isprintable() for part in parts)
    if not plain or "\\" in str(name) or Path(str(name)).is_absolute():
        raise error_class(
            f"{named_in}: names the file {str(name)[:80]!r}, which is no plain name inside its folder; use another copy."
        )
    file, root = folder.joinpath(*parts), real_path(folder)
    allowed = [root, *([root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [])]  # of the hub's cache
    if not any(real_path(file).is_relative_to(path) for path in allowed):
        raise error_class(f"{file}: is a link that leads out of its folder; use another copy.")
    if not file.is_dir():
        require_regular(file, error_class)
    return file


def write_text(file: Path, text: str, *, sync: bool = False) -> None:
    """Write ``text`` atomically, as UTF-8."""
    write_bytes(file, text.encode(), sync=sync)


def write_json(file: Path, data: Any, *, sync: bool = False) -> None:
    """Write ``data`` atomically, as indented JSON; see :func:`json_safe` for numbers that are not finite."""
    write_text(file, json.dumps(json_safe(data), indent=2) + "\n", sync=sync)


def read_json(
    file: Path, error_class: type[AttractorError], *, advice: str = "give another file", kind: type = dict
) -> Any:
    """Return the JSON object in ``file``, or with ``kind=list`` the list.

    Raises
    ------
    error_class
        If the file does not exist, is not JSON, or holds something else than an object. The message ends in ``advice``.
    """
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no regular file")
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else first_line(error)
        raise error_class(f"{file}: cannot be read as JSON ({reason}); {advice}.") from error
    if not isinstance(data, kind):
        raise error_class(f"{file}: holds no JSON {'list' if kind is list else 'object'}; {advice}.")
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
    """Return a new hidden name in the same folder, with the same suffix."""
    return path.with_name(f".{path.name}.part-{secrets.token_hex(6)}{path.suffix}")
