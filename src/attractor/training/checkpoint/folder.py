"""The folder of a checkpoint: finding it, and what holds it together."""

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch.distributed as dist

from attractor.errors import CheckpointError
from attractor.training.checkpoint.ranks import agree, rank_and_world

FORMAT = "attractor-1"
CHECKSUMS = "checksums.json"
DAMAGED = "; the checkpoint is damaged."
TRAINING = ("training/*", "training.json", "rank-*.safetensors")  # files that inference never reads
Checksums = dict[str, dict[str, int]]  # by file name, relative to the folder: "size" in bytes and "crc32"


def checkpoints_in(out: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, oldest first.

    One that was about to be replaced by another of the same step (``step-N-old``) stands before its successor.
    """
    found = [(re.fullmatch(r"step-(\d+)(-old)?", path.name), path) for path in out.glob("step-*")]
    return [path for match, path in sorted(found, key=_order) if match and path.is_dir()]


def _order(found: tuple[re.Match[str] | None, Path]) -> tuple[int, bool]:
    match = found[0]
    return (int(match[1]), match[2] is None) if match else (-1, False)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that ``path`` means: itself, or the newest one in a run's folder."""
    if (path / "run.json").is_file():
        return path
    found = checkpoints_in(path)
    if not found:
        raise CheckpointError(f"{path}: no checkpoint here; give a folder with run.json, or a run's folder.")
    return found[-1]


def read_run(checkpoint: Path, kind: str | None = None) -> dict[str, Any]:
    """Return what ``run.json`` describes, after checking that it is ours and of that kind."""
    file = checkpoint / "run.json"
    data = read_json(file)
    if data.pop("format", None) != FORMAT:
        raise CheckpointError(f"{file}: not a checkpoint of this package (its format is not {FORMAT!r}).")
    if kind is not None and data.get("kind") != kind:
        raise CheckpointError(f"{file}: holds a checkpoint of kind {data.get('kind')!r}, but {kind!r} is needed here.")
    return data


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a file."""
    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}){DAMAGED}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: holds no JSON object{DAMAGED}")
    return data


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json`` for all that lies in ``folder``, and all of it to the disk."""
    write_checksum_file(folder, checksums(folder, files(folder)))


def update_checksums(checkpoint: Path, name: str) -> None:
    """Take note that a file was changed on purpose. Folders without checksums need no note."""
    if (checkpoint / CHECKSUMS).is_file():
        write_checksum_file(checkpoint, read_checksums(checkpoint) | checksums(checkpoint, [name]))


def verify(checkpoint: Path, group: dist.ProcessGroup | None = None) -> None:
    """Check every file of a checkpoint; with a ``group``, each rank some of them.

    Raises
    ------
    CheckpointError
        On all ranks, naming a file that is missing, damaged or foreign, and the newest older checkpoint that is whole.
    """
    rank, world = rank_and_world(group)

    def mine() -> None:
        try:
            expected = read_checksums(checkpoint)
            verify_files(checkpoint, expected, sorted(expected.keys() | set(files(checkpoint)))[rank::world])
        except CheckpointError as error:
            raise CheckpointError(f"{str(error).removesuffix(DAMAGED)}; {_way_on(checkpoint)}") from error

    agree(group, mine)


def verify_weights(checkpoint: Path) -> None:
    """Check the weights for inference, where there are checksums: plain folders of ``transformers`` have none."""
    if (checkpoint / CHECKSUMS).is_file():
        expected = read_checksums(checkpoint)
        verify_files(checkpoint, expected, [name for name in expected if fnmatch(name, "model*.safetensors*")])


def inference_files(checkpoint: Path) -> list[str]:
    """Return the names of the files that are not for training alone, once they have been checked."""
    expected = read_checksums(checkpoint)
    names = [name for name in expected if not any(fnmatch(name, pattern) for pattern in TRAINING)]
    verify_files(checkpoint, expected, names)
    return names


def verify_files(checkpoint: Path, expected: Checksums, names: Iterable[str]) -> None:
    """Check some files, and refuse the first that is not what it should be."""
    for name in names:
        file = checkpoint / name
        if name not in expected:
            raise CheckpointError(f"{file}: does not belong to this checkpoint{DAMAGED}")
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing{DAMAGED}")
        if file.stat().st_size != expected[name]["size"]:
            raise CheckpointError(
                f"{file}: has {file.stat().st_size:,} bytes and not {expected[name]['size']:,}{DAMAGED}"
            )
        if _crc32(file) != expected[name]["crc32"]:
            raise CheckpointError(f"{file}: does not match its checksum{DAMAGED}")


def files(folder: Path) -> list[str]:
    """Return the names of all files but ``checksums.json``, relative to ``folder``."""
    return sorted(
        name for p in folder.rglob("*") if p.is_file() and (name := p.relative_to(folder).as_posix()) != CHECKSUMS
    )


def checksums(folder: Path, names: Iterable[str]) -> Checksums:
    """Return the checksums of files, once they are on the disk."""
    found = {}
    for name in names:
        with (folder / name).open("rb+") as stream:
            os.fsync(stream.fileno())
        found[name] = {"size": (folder / name).stat().st_size, "crc32": _crc32(folder / name)}
    return found


def write_checksum_file(folder: Path, found: Checksums) -> None:
    """Write ``checksums.json`` beside its place, and rename it into it."""
    part = folder / f".{CHECKSUMS}.part"
    part.write_text(json.dumps({"crc32": _crc32_of(found), "files": dict(sorted(found.items()))}, indent=1))
    with part.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(part, folder / CHECKSUMS)
    for each in {folder, *(p for p in folder.rglob("*") if p.is_dir())}:
        sync_folder(each)


def sync_folder(folder: Path) -> None:
    """Write to the disk which files a folder holds, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_checksums(checkpoint: Path) -> Checksums:
    """Return what the checkpoint says of its files."""
    file = checkpoint / CHECKSUMS
    if not file.is_file():
        raise CheckpointError(f"{file}: is missing{DAMAGED}")
    data = read_json(file)
    found: Checksums = data.get("files", {})
    if data.get("crc32") != _crc32_of(found):
        raise CheckpointError(f"{file}: does not match its own checksum{DAMAGED}")
    return found


def _crc32_of(found: Checksums) -> int:
    return zlib.crc32(json.dumps(found, sort_keys=True).encode())


def _crc32(file: Path) -> int:
    value = 0
    for block in _blocks(file):
        value = zlib.crc32(block, value)
    return value


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb", buffering=0) as stream:
        while block := stream.read(1 << 22):
            yield block


def _way_on(checkpoint: Path) -> str:
    """Say how to go on without this checkpoint."""
    beside = checkpoints_in(checkpoint.parent)
    for older in reversed(beside[: beside.index(checkpoint)] if checkpoint in beside else []):
        try:
            expected = read_checksums(older)
            verify_files(older, expected, sorted(expected.keys() | set(files(older))))
        except CheckpointError:
            continue
        return f"{older.name} is whole: remove {checkpoint.name} to resume from there."
    return "no older checkpoint is whole."
