"""The folder of a checkpoint: find it, list its files and verify them."""

import json
import re
import zlib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch.distributed as dist

from attractor.errors import CheckpointError
from attractor.files import checksum, read_json, sync_file, sync_folder, write_text
from attractor.training.checkpoint.ranks import rank_and_size, run_on_all_ranks

FORMAT = "attractor-1"
CHECKSUMS = "checksums.json"
ADVICE = "the checkpoint is damaged"
DAMAGED = f"; {ADVICE}."
TRAINING_FILES = ("training/*", "training.json", "rank-*.safetensors")  # inference never reads them
Checksums = dict[str, dict[str, int]]  # by file name, relative to the folder: "size" in bytes and "crc32"


def checkpoints_in(out: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, oldest first.

    ``step-N-old``, which a new checkpoint of the same step was about to replace, comes before ``step-N``.
    """
    found = [
        (int(match[1]), match[2] is None, path)
        for path in out.glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)(-old)?", path.name)) and path.is_dir()
    ]
    return [path for *_, path in sorted(found)]


def find_checkpoint(path: Path) -> Path:
    """Return ``path`` if it is a checkpoint, or else the newest checkpoint in this run's folder.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    if (path / "run.json").is_file():
        return path
    found = checkpoints_in(path)
    if not found:
        raise CheckpointError(f"{path}: no checkpoint here; give a folder with run.json, or a run's folder.")
    return found[-1]


def read_run(checkpoint: Path, kind: str | None = None) -> dict[str, Any]:
    """Return the metadata in ``run.json``.

    Raises
    ------
    CheckpointError
        If it is not a checkpoint of this package, or not of this ``kind``.
    """
    file = checkpoint / "run.json"
    data = read_json(file, CheckpointError, advice=ADVICE)
    if data.pop("format", None) != FORMAT:
        raise CheckpointError(f"{file}: not a checkpoint of this package (its format is not {FORMAT!r}).")
    if kind is not None and data.get("kind") != kind:
        raise CheckpointError(f"{file}: holds a checkpoint of kind {data.get('kind')!r}, but {kind!r} is needed here.")
    return data


def write_checksums(folder: Path) -> None:
    """Write ``checksums.json`` for all files in ``folder``, and wait until everything is on the disk."""
    write_checksum_file(folder, compute_checksums(folder, list_files(folder)))


def update_checksums(checkpoint: Path, name: str) -> None:
    """Renew the checksum of a file that was changed on purpose. Does nothing in a folder without checksums."""
    if (checkpoint / CHECKSUMS).is_file():
        write_checksum_file(checkpoint, read_checksums(checkpoint) | compute_checksums(checkpoint, [name]))


def verify(checkpoint: Path, group: dist.ProcessGroup | None = None) -> None:
    """Verify every file of a checkpoint. With a ``group``, each rank verifies some of them.

    Raises
    ------
    CheckpointError
        On all ranks, with the name of a file that is missing, damaged or foreign, and of the newest older checkpoint
        that is complete.
    """
    rank, size = rank_and_size(group)

    def verify_share() -> None:
        try:
            expected = read_checksums(checkpoint)
            verify_files(checkpoint, expected, sorted(expected.keys() | set(list_files(checkpoint)))[rank::size])
        except CheckpointError as error:
            raise CheckpointError(f"{str(error).removesuffix(DAMAGED)}; {_what_to_do(checkpoint)}") from error

    run_on_all_ranks(group, verify_share)


def verify_weights(checkpoint: Path) -> None:
    """Verify the weights for inference, if there are checksums: folders that only ``transformers`` wrote have none."""
    if (checkpoint / CHECKSUMS).is_file():
        expected = read_checksums(checkpoint)
        verify_files(checkpoint, expected, [name for name in expected if fnmatch(name, "model*.safetensors*")])


def inference_files(checkpoint: Path) -> list[str]:
    """Verify the files that inference needs, and return their names."""
    expected = read_checksums(checkpoint)
    names = [name for name in expected if not any(fnmatch(name, pattern) for pattern in TRAINING_FILES)]
    verify_files(checkpoint, expected, names)
    return names


def verify_files(checkpoint: Path, expected: Checksums, names: Iterable[str]) -> None:
    """Raise a CheckpointError for the first of these files that is missing, damaged or foreign."""
    for name in names:
        file = checkpoint / name
        if name not in expected:
            raise CheckpointError(f"{file}: does not belong to this checkpoint{DAMAGED}")
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing{DAMAGED}")
        size, expected_size = file.stat().st_size, expected[name]["size"]
        if size != expected_size:
            raise CheckpointError(f"{file}: has {size:,} bytes and not {expected_size:,}{DAMAGED}")
        if checksum(file) != expected[name]["crc32"]:
            raise CheckpointError(f"{file}: does not match its checksum{DAMAGED}")


def list_files(folder: Path) -> list[str]:
    """Return the names of all files but ``checksums.json``, relative to ``folder``."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != CHECKSUMS)


def compute_checksums(folder: Path, names: Iterable[str]) -> Checksums:
    """Wait until these files are on the disk, and return their checksums."""
    found = {}
    for name in names:
        sync_file(folder / name)
        found[name] = {"size": (folder / name).stat().st_size, "crc32": checksum(folder / name)}
    return found


def write_checksum_file(folder: Path, checksums: Checksums) -> None:
    """Write ``checksums.json``, and wait until the folder is on the disk."""
    data = {"crc32": _own_checksum(checksums), "files": dict(sorted(checksums.items()))}
    # Without a newline at the end: a file without its last byte must not be valid JSON.
    write_text(folder / CHECKSUMS, json.dumps(data, indent=1), sync=True)
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(each)


def read_checksums(checkpoint: Path) -> Checksums:
    """Return the checksums in ``checksums.json``."""
    file = checkpoint / CHECKSUMS
    if not file.is_file():
        raise CheckpointError(f"{file}: is missing{DAMAGED}")
    data = read_json(file, CheckpointError, advice=ADVICE)
    checksums: Checksums = data.get("files", {})
    if data.get("crc32") != _own_checksum(checksums):
        raise CheckpointError(f"{file}: does not match its own checksum{DAMAGED}")
    return checksums


def _own_checksum(checksums: Checksums) -> int:
    return zlib.crc32(json.dumps(checksums, sort_keys=True).encode())


def _what_to_do(checkpoint: Path) -> str:
    """Return which older checkpoint can be used instead of a damaged one."""
    found = checkpoints_in(checkpoint.parent)
    for older in reversed(found[: found.index(checkpoint)] if checkpoint in found else []):
        try:
            expected = read_checksums(older)
            verify_files(older, expected, sorted(expected.keys() | set(list_files(older))))
        except CheckpointError:
            continue
        return f"{older.name} is complete: remove {checkpoint.name} to resume from there."
    return "no older checkpoint is complete."
