"""The folder of a checkpoint: find it, read its metadata and verify its files."""

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch.distributed as dist

from attractor.errors import CheckpointError
from attractor.files import read_json
from attractor.files.manifest import CHECKSUMS, damaged, list_files, read_checksums, verify_files, verify_folder
from attractor.files.received import check_model_folder
from attractor.training.checkpoint.ranks import rank_and_size, run_on_all_ranks

FORMAT = "attractor-1"
ADVICE = "the checkpoint is damaged"
LATEST = "latest"  # a link to the newest checkpoint in a run's folder
TRAINING_FILES = ("training/*", "training.json", "rank-*.safetensors")  # inference never reads them


def checkpoints_in(out: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, oldest first.

    ``step-N-old``, which a new checkpoint of the same step was about to replace, comes before ``step-N``.
    """
    found = [
        (int(match[1]), match[2] is None, path)
        for path in out.glob("step-*")
        if (match := re.fullmatch(r"step-(\d{8,})(-old)?", path.name)) and path.is_dir()
    ]
    return [path for *_, path in sorted(found)]


def find_checkpoint(path: Path) -> Path:
    """Return ``path`` if it is a checkpoint, or else the newest checkpoint in this run's folder.

    ``RUN/latest`` is the newest checkpoint too, also where the disk has no links.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    if path.name == LATEST and (path.is_symlink() or not path.exists()):
        path = path.parent
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
            sentence = str(error).removesuffix(damaged(CheckpointError)).removesuffix(".")
            raise CheckpointError(f"{sentence}; {_what_to_do(checkpoint)}") from error

    run_on_all_ranks(group, verify_share)


def inference_files(checkpoint: Path) -> list[str]:
    """Verify the files that inference needs, and return their names."""
    expected = read_checksums(checkpoint)
    names = [name for name in expected if not any(fnmatch(name, pattern) for pattern in TRAINING_FILES)]
    verify_files(checkpoint, expected, names)
    return names


def verify_inference(checkpoint: Path) -> None:
    """Verify the files that inference needs if there are checksums, and in any case that no file asks to run code."""
    check_model_folder(checkpoint, CheckpointError)
    if (checkpoint / CHECKSUMS).exists():
        try:
            inference_files(checkpoint)
        except CheckpointError as error:
            advice = f", or was edited: then remove its {CHECKSUMS}."
            raise CheckpointError(str(error).removesuffix(".") + advice) from error


def _what_to_do(checkpoint: Path) -> str:
    """Return which older checkpoint can be used instead of a damaged one."""
    found = checkpoints_in(checkpoint.parent)
    for older in reversed(found[: found.index(checkpoint)] if checkpoint in found else []):
        try:
            verify_folder(older, CheckpointError)
        except CheckpointError:
            continue
        return f"{older.name} is complete: remove {checkpoint.name} to resume from there."
    return "no older checkpoint is complete."
